from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fusion.answers.clip import Clip, build_clip
from fusion.errors import ConfigError, StateDictError
from fusion.store import Store
from fusion.store.node_cache import NodeCache
from fusion.tensors import TensorFile, write_tensors
from tests.tiny import BATCH_NORM_CFG, tiny_base, tiny_task
from tests.training.weights import tensors_of
from training.augment import Policy
from training.data.task_data import TaskData, load_task_data
from training.finetune import TrainingDivergedError, finetune
from training.recipe import Recipe
from training.samplers import Sampler
from training.worker_group import WorkerGroup

RECIPE = Recipe(
    steps=16, batch_size=16, lr=1e-3, warmup_steps=3, label_smoothing=0.1, augment="draw", train_templates="all"
)
SHARED_RECIPE = replace(RECIPE, batch_size=15, save_every_steps=7, eps=1e-3)
"""For two workers: shares of 8 and 7. With a small eps AdamW makes full steps for gradients that are only rounding
errors (an attention's key bias has no others), and then another order of summation gives other weights."""
SMALLER = {"gradient_accumulation": 2, "gradient_checkpointing": True, "early_stop": 9, "validate_every_steps": 3}
ROOT = Path(__file__).parents[2]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def data(tmp_path: Path) -> TaskData:
    return load_task_data("colours", tiny_task(tmp_path / "colours", num_train=6))


def weight(clip: Clip, name: str) -> torch.Tensor:
    return clip.model.get_parameter(name).detach()


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def test_the_loss_falls_and_the_task_is_learned(new_clip: Callable[[], Clip], data: TaskData) -> None:
    clip, losses = new_clip(), []
    result = finetune(clip, data, replace(RECIPE, steps=40), seed=0, on_progress=lambda _, loss: losses.append(loss))
    assert result.steps == len(losses) == 40
    assert result.final_loss == losses[-1]
    assert losses[-1] < 0.6 * losses[0]
    images = clip.image_features(clip.pixels([data.test.image(index) for index in range(len(data.test))]))
    predicted = (images @ clip.class_features(data.classes, data.templates).T).argmax(1).numpy()
    assert np.mean(predicted == data.test.labels) >= 0.9


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_same_seed_gives_the_same_weights_and_another_seed_does_not(
    new_clip: Callable[[], Clip], data: TaskData, precision: Any
) -> None:
    recipe = replace(RECIPE, steps=6, precision=precision)
    clips = [new_clip() for _ in range(3)]
    for clip, seed in zip(clips, (1, 1, 2), strict=True):
        finetune(clip, data, recipe, seed=seed)
    assert_same(tensors_of(clips[0]), tensors_of(clips[1]))
    assert not torch.equal(weight(clips[0], "visual.proj"), weight(clips[2], "visual.proj"))


@pytest.mark.parametrize(("augment", "balanced"), [("draw", True), ("crop", False)])
def test_a_resumed_training_ends_with_exactly_the_weights_of_an_undisturbed_one(
    new_clip: Callable[[], Clip], data: TaskData, tmp_path: Path, augment: Policy, balanced: bool
) -> None:
    recipe = replace(RECIPE, save_every_steps=5, augment=augment, balanced=balanced, clip_grad=1.0, weight_decay=0.01)
    undisturbed, killed, resumed = new_clip(), new_clip(), new_clip()
    whole = finetune(undisturbed, data, recipe, seed=3)

    def save(step: int, tensors: dict[str, torch.Tensor]) -> None:
        write_tensors(tmp_path / f"state-{step}.safetensors", tensors)

    def killed_at_12(step: int, loss: float) -> None:
        if step == 12:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finetune(killed, data, recipe, seed=3, on_progress=killed_at_12, on_state=save)
    steps: list[int] = []
    state = tmp_path / "state-10.safetensors"
    last = finetune(resumed, data, recipe, seed=3, state=state, on_progress=lambda step, _: steps.append(step))
    assert steps == list(range(11, 17))
    assert last.final_loss == whole.final_loss
    assert_same(tensors_of(undisturbed), tensors_of(resumed))


def test_decoding_ahead_in_threads_changes_nothing(new_clip: Callable[[], Clip], data: TaskData) -> None:
    alone, ahead = new_clip(), new_clip()
    finetune(alone, data, replace(RECIPE, steps=6), seed=0)
    finetune(ahead, data, replace(RECIPE, steps=6), seed=0, num_loader_threads=3)
    assert_same(tensors_of(alone), tensors_of(ahead))


def test_tokens_that_the_task_never_uses_keep_the_base_s_values(new_clip: Callable[[], Clip], data: TaskData) -> None:
    clip = new_clip()
    before = tensors_of(clip)
    finetune(clip, data, replace(RECIPE, weight_decay=0.1), seed=0)
    texts = [template.format(name) for template in data.templates for name in data.classes]
    used = torch.zeros(len(before["token_embedding.weight"]), dtype=torch.bool)
    used[clip.tokenizer(texts).unique()] = True
    delta = weight(clip, "token_embedding.weight") - before["token_embedding.weight"]
    assert not delta[~used].any()
    assert delta[used].any()


def test_the_logit_scale_is_frozen_and_both_encoders_move(new_clip: Callable[[], Clip], data: TaskData) -> None:
    clip = new_clip()
    before = tensors_of(clip)
    finetune(clip, data, RECIPE, seed=0)
    after = tensors_of(clip)
    assert torch.equal(before["logit_scale"], after["logit_scale"])
    still = {name for name in before if torch.equal(before[name], after[name])}
    assert still <= {"logit_scale", "attn_mask"}


def test_batch_norm_statistics_keep_the_base_s_values(local_store: Store, data: TaskData) -> None:
    base = tiny_base(local_store, model_cfg=BATCH_NORM_CFG)
    clip = build_clip(base, NodeCache(local_store).tensors(base.weights))
    before = tensors_of(clip)
    statistics = [name for name in before if "running_" in name or "num_batches" in name]
    finetune(clip, data, replace(RECIPE, steps=3, warmup_steps=1), seed=0)
    after = tensors_of(clip)
    assert len(statistics) > 10
    assert [name for name in statistics if not torch.equal(before[name], after[name])] == []
    assert not torch.equal(before["visual.bn1.weight"], after["visual.bn1.weight"])
    assert not any(module.training for module in clip.model.modules())


def test_a_diverged_loss_names_step_and_rate(new_clip: Callable[[], Clip], data: TaskData) -> None:
    with pytest.raises(
        TrainingDivergedError, match=r"task 'colours': the loss is (nan|inf) at step \d+ of 16 \(lr \S+e\+"
    ):
        finetune(new_clip(), data, replace(RECIPE, lr=1e30), seed=0)


def test_a_state_of_another_model_is_refused(new_clip: Callable[[], Clip], data: TaskData, tmp_path: Path) -> None:
    write_tensors(tmp_path / "state.safetensors", {"step": torch.tensor([3]), "model/visual.proj": torch.zeros(2, 2)})
    with pytest.raises(StateDictError, match=r"state\.safetensors"):
        finetune(new_clip(), data, RECIPE, seed=0, state=tmp_path / "state.safetensors")


def test_more_workers_than_images_per_step_are_refused(new_clip: Callable[[], Clip], data: TaskData) -> None:
    with pytest.raises(ConfigError, match="batch_size 2 is smaller than 3 workers"):
        finetune(new_clip(), data, replace(RECIPE, batch_size=2), seed=0, workers=WorkerGroup(3, 0))


def test_every_image_comes_once_per_epoch() -> None:
    sampler = Sampler(np.arange(10) % 3, batch_size=4, seed=0, balanced=False)
    drawn = torch.cat([sampler.batch(step) for step in range(5)]).tolist()
    assert sorted(drawn[:10]) == sorted(drawn[10:20]) == list(range(10))
    assert drawn[:10] != drawn[10:20]
    assert torch.equal(sampler.batch(1), Sampler(np.arange(10) % 3, batch_size=4, seed=0, balanced=False).batch(1))


def test_balanced_draws_rare_classes_as_often_as_frequent_ones() -> None:
    labels = np.array([0] * 90 + [1] * 9 + [2])
    sampler = Sampler(labels, batch_size=6, seed=0, balanced=True)
    drawn = labels[torch.cat([sampler.batch(step) for step in range(50)]).numpy()]
    assert np.bincount(drawn).tolist() == [100, 100, 100]


@pytest.mark.processes
@pytest.mark.parametrize("changes", [{}, SMALLER], ids=["plain", "in parts"])
def test_two_workers_train_to_the_weights_of_one(
    new_clip: Callable[[], Clip], data: TaskData, tmp_path: Path, changes: dict[str, Any]
) -> None:
    """Two real processes over gloo; one of them resumes, the other receives the state from it."""
    alone = new_clip()
    write_tensors(tmp_path / "base.safetensors", tensors_of(alone))

    def save(step: int, tensors: dict[str, torch.Tensor]) -> None:
        write_tensors(tmp_path / f"{step}.safetensors", tensors)

    finetune(alone, data, replace(SHARED_RECIPE, **changes), seed=5, on_state=save)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    environment = {**os.environ, **group, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    data_folder, changed = str(tmp_path / "colours"), json.dumps(changes)
    for name, state in (("whole", ""), ("resumed", str(tmp_path / "7.safetensors"))):
        ranks = [
            subprocess.Popen(
                [sys.executable, "-m", "tests.training.rank", str(tmp_path), data_folder, name, state, changed],
                env={**environment, "RANK": str(rank)},
            )
            for rank in range(2)
        ]
        assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]
        for rank in range(2):
            trained = TensorFile(tmp_path / f"{name}-{rank}.safetensors")
            for tensor_name, tensor in tensors_of(alone).items():
                torch.testing.assert_close(trained.tensor(tensor_name), tensor, rtol=0, atol=1e-5)
