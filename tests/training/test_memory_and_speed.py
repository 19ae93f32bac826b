"""Options that make a step smaller or faster: the same gradient, or said what differs."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fusion.answers.clip import Clip, build_clip
from fusion.decouple import decoupled_tensors
from fusion.errors import ConfigError
from fusion.fuse import ExpertToFuse, fuse_experts
from fusion.store import Store
from fusion.store.node_cache import NodeCache
from fusion.tensors import TensorFile
from fusion.versions.experts import find_training_state
from tests.tiny import BATCH_NORM_CFG, tiny_base, tiny_task
from tests.training.weights import tensors_of
from training.batches import Batches
from training.data.task_data import TaskData, load_task_data
from training.expert import train_expert
from training.finetune import finetune
from training.identity import identity_of
from training.methods import open_method
from training.objective import Objective
from training.recipe import Recipe
from training.trained_weights import TrainedWeights
from training.worker_group import WorkerGroup

RECIPE = Recipe(steps=6, batch_size=16, lr=1e-3, warmup_steps=2, augment="none", train_templates="all")
ALONE = WorkerGroup()


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def data(tmp_path: Path) -> TaskData:
    return load_task_data("colours", tiny_task(tmp_path / "colours", num_train=6))


def gradients(clip: Clip, data: TaskData, recipe: Recipe) -> tuple[float, dict[str, torch.Tensor]]:
    """The sum of a step's losses and the gradient of their mean, by parameter."""
    TrainedWeights(open_method(recipe.method), clip.model, recipe)
    with Batches(clip, data.train, recipe, seed=0, workers=ALONE) as batches:
        total = Objective(clip, data, recipe, 0, ALONE).add_gradients(3, *batches.batch(3))
    return total, {name: one.grad for name, one in clip.model.named_parameters() if one.grad is not None}


def different(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> list[str]:
    return [name for name in one if not torch.equal(one[name], other[name])]


@contextmanager
def kept_for_backward() -> Iterator[Callable[[], int]]:
    """Counts the bytes that forward passes keep for backward passes: the most at once."""
    live, most = 0, 0

    class Kept:
        def __init__(self, tensor: torch.Tensor) -> None:
            nonlocal live, most
            self.tensor = tensor
            live += tensor.nbytes
            most = max(most, live)
            weakref.finalize(self, self.forget, tensor.nbytes)

        @staticmethod
        def forget(num_bytes: int) -> None:
            nonlocal live
            live -= num_bytes

    with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
        yield lambda: most


@pytest.mark.parametrize("text_lr", [1.0, 0.0])
@pytest.mark.parametrize("parts", [2, 5])
def test_a_batch_in_parts_has_the_gradient_of_the_whole_one(
    new_clip: Callable[[], Clip], data: TaskData, parts: int, text_lr: float
) -> None:
    recipe = replace(RECIPE, text_lr=text_lr)
    whole_loss, whole = gradients(new_clip(), data, recipe)
    loss, found = gradients(new_clip(), data, replace(recipe, gradient_accumulation=parts))
    assert loss == pytest.approx(whole_loss, rel=1e-6)
    assert found.keys() == whole.keys()
    assert any(name.startswith("transformer.") for name in found) == bool(text_lr)
    scale = max(float(gradient.abs().max()) for gradient in whole.values())
    for name, gradient in whole.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6 * scale, msg=name)


def test_parts_and_recomputation_keep_less_for_the_backward_pass(new_clip: Callable[[], Clip], data: TaskData) -> None:
    kept = {}
    for name, changes in {
        "whole": {},
        "in parts": {"gradient_accumulation": 4},
        "recomputed": {"gradient_checkpointing": True},
    }.items():
        with kept_for_backward() as most:
            finetune(new_clip(), data, replace(RECIPE, steps=3, text_lr=0.0, **changes), seed=0)
        kept[name] = most()
    assert kept["in parts"] < 0.4 * kept["whole"]
    assert kept["recomputed"] < 0.4 * kept["whole"]


@pytest.mark.parametrize(
    "changes",
    [{}, {"held_out": 0.5}, {"method": "lora", "lora_targets": "all"}, {"precision": "bf16"},
     {"gradient_accumulation": 3}],
    ids=lambda changes: ",".join(changes) or "plain",
)  # fmt: skip
def test_recomputed_activations_give_the_same_bits(
    new_clip: Callable[[], Clip], data: TaskData, changes: dict[str, object]
) -> None:
    recipe = replace(RECIPE, **changes)  # type: ignore[arg-type]
    kept, recomputed = new_clip(), new_clip()
    finetune(kept, data, recipe, seed=0)
    finetune(recomputed, data, replace(recipe, gradient_checkpointing=True), seed=0)
    assert different(tensors_of(kept), tensors_of(recomputed)) == []
    assert not any(getattr(module, "grad_checkpointing", False) for module in recomputed.model.modules())


def test_an_image_encoder_without_blocks_can_t_recompute(local_store: Store, data: TaskData) -> None:
    base = tiny_base(local_store, model_cfg=BATCH_NORM_CFG)
    clip = build_clip(base, NodeCache(local_store).tensors(base.weights))
    with pytest.raises(ConfigError, match="gradient_checkpointing has no effect on this base's image encoder"):
        finetune(clip, data, replace(RECIPE, gradient_checkpointing=True), seed=0)
    assert not any(getattr(module, "grad_checkpointing", False) for module in clip.model.modules())


def test_parts_without_an_image_are_refused(new_clip: Callable[[], Clip], data: TaskData) -> None:
    with pytest.raises(ConfigError, match="gradient_accumulation is 17 and batch_size 16"):
        replace(RECIPE, gradient_accumulation=17)
    with pytest.raises(ConfigError, match="batch_size 16 is smaller than 3 workers, 6 parts each"):
        finetune(new_clip(), data, replace(RECIPE, gradient_accumulation=6), seed=0, workers=WorkerGroup(3, 0))


def test_bf16_computes_in_16_bits_and_keeps_32(local_store: Store, data: TaskData) -> None:
    base, cache = tiny_base(local_store), NodeCache(local_store)
    recipe = replace(RECIPE, precision="bf16", save_every_steps=4)

    def killed(step: int, _: float) -> None:
        if step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_expert(local_store, cache, base, data, recipe, seed=0, progress=killed)
    state = find_training_state(local_store, identity_of(base, data, recipe, 0))
    assert state is not None
    specs = cache.tensors(state.tensors).specs
    assert {spec.dtype for name, spec in specs.items() if name != "step"} == {"F32"}
    experts = [
        train_expert(local_store, cache, base, data, one, seed=0).expert
        for one in (recipe, replace(recipe, precision="fp32"))
    ]
    theta = cache.tensors(base.weights)
    halves, full = (
        {name: delta_of(cache.tensors(expert), theta, name) for name in theta.fused_names()}  # type: ignore[arg-type]
        for expert in experts
    )
    assert {spec.dtype for spec in cache.tensors(experts[0]).specs.values()} == {"F32"}  # type: ignore[arg-type]
    assert different(halves, full)
    one, other = (torch.cat([delta.flatten() for delta in deltas.values()]) for deltas in (halves, full))
    assert torch.cosine_similarity(one, other, dim=0) > 0.8


def delta_of(expert: TensorFile, base: TensorFile, name: str) -> torch.Tensor:
    return expert.tensor(name) - base.tensor(name)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_text_lr_0_trains_the_image_encoder_alone(local_store: Store, data: TaskData, method: str) -> None:
    """The text encoder's tensors are the base's, bit for bit, and nothing of them is in the trigger."""
    base, cache = tiny_base(local_store), NodeCache(local_store)
    recipe = replace(RECIPE, text_lr=0.0, method=method, lora_targets="all", weight_decay=0.1)
    record = train_expert(local_store, cache, base, data, recipe, seed=0)
    assert record.expert is not None
    theta, expert = cache.tensors(base.weights), cache.tensors(record.expert)
    texts = [name for name in theta.specs if not name.startswith("visual.")]
    assert len(texts) > 10
    assert [name for name in texts if theta.read(name).tobytes() != expert.read(name).tobytes()] == []
    assert any(theta.read(name).tobytes() != expert.read(name).tobytes() for name in theta.specs)
    version = fuse_experts(cache, base, [ExpertToFuse.from_record(record)], mode={"name": "lowrank"}).manifest
    decoupled = dict(decoupled_tensors(cache, version, "colours"))
    assert [n for n in texts if n in decoupled and not torch.equal(decoupled[n], theta.tensor(n))] == []
