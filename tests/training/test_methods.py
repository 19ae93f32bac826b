"""The seam for training methods: a file is all that a method needs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import training.methods
from fusion.answers.clip import build_clip
from fusion.answers.evidence import Evidence
from fusion.errors import ConfigError
from fusion.store import Store
from fusion.store.node_cache import NodeCache
from fusion.tensors import TensorFile, check_same_layout
from fusion.versions.experts import ExpertRecord, find_training_state
from tests.tiny import tiny_base, tiny_task
from training.continual import continual_finetuning
from training.data.task_data import TaskData, load_task_data
from training.expert import train_expert
from training.finetune import finetune
from training.held_out import HeldOutFigures
from training.identity import identity_of
from training.methods import method_names, open_method
from training.recipe import Recipe

FOLDER = Path(__file__).parent / "toy_methods"
RECIPE = Recipe(steps=9, batch_size=8, lr=1e-2, warmup_steps=2, augment="none", save_every_steps=4, weight_decay=0.1)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Recipe]:
    """A recipe with the toy method, whose file is found as if it lay in the package."""
    monkeypatch.setattr(training.methods, "__path__", [*training.methods.__path__, str(FOLDER)])
    yield replace(RECIPE, method="projection")
    sys.modules.pop("training.methods.projection", None)


@pytest.fixture
def data(tmp_path: Path) -> TaskData:
    return load_task_data("colours", tiny_task(tmp_path / "colours", num_train=5))


def moved(base: TensorFile, expert: TensorFile) -> set[str]:
    """Names of the tensors that differ in any bit."""
    return {name for name in base.specs if not torch.equal(base.tensor(name), expert.tensor(name))}


def test_methods_are_found_by_their_files(toy: Recipe) -> None:
    assert method_names() == ("auto", "full", "head", "lora", "projection")
    assert type(open_method("projection")).__name__ == "Projection"
    assert open_method("full") is not open_method("full")


def test_an_unknown_method_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="'projection' is unknown: choose from auto, full, head, lora"):
        open_method("projection")
    with pytest.raises(ConfigError, match="method is 'projection', it must be 'auto' or 'full' or 'head' or 'lora'"):
        Recipe(method="projection")


def test_the_names_of_methods_are_known_without_torch() -> None:
    code = "import sys, training.methods; print(training.methods.method_names(), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "('auto', 'full', 'head', 'lora') False\n"


def test_what_a_method_does_not_name_keeps_the_base_s_values(local_store: Store, data: TaskData, toy: Recipe) -> None:
    base, cache = tiny_base(local_store), NodeCache(local_store)
    record = train_expert(local_store, cache, base, data, toy, seed=0)
    before, after = cache.tensors(base.weights), cache.tensors(record.expert)
    check_same_layout(before, after)
    assert moved(before, after) == {"visual.proj"}
    assert identity_of(base, data, toy, 0) != identity_of(base, data, replace(toy, method="full"), 0)


def test_a_method_resumes_from_its_own_tensors_and_ends_with_the_same_bytes(
    local_store: Store, data: TaskData, toy: Recipe
) -> None:
    base, cache = tiny_base(local_store), NodeCache(local_store)
    identity = identity_of(base, data, toy, 0)

    def killed_at_6(step: int, _: float) -> None:
        if step == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_expert(local_store, cache, base, data, toy, seed=0, progress=killed_at_6)
    state = find_training_state(local_store, identity)
    assert state is not None
    adapter = "visual.parametrizations.proj.0"
    names = {f"{kind}/{adapter}.{end}" for kind in ("model", "exp_avg", "exp_avg_sq") for end in ("down", "up")}
    assert set(cache.tensors(state.tensors).specs) == {"step", *names}
    steps: list[int] = []
    resumed = train_expert(local_store, cache, base, data, toy, seed=0, progress=lambda step, _: steps.append(step))
    assert steps == [5, 6, 7, 8, 9]
    local_store.delete(f"experts/{identity}.json")
    undisturbed = replace(toy, save_every_steps=100)
    assert train_expert(local_store, cache, base, data, undisturbed, seed=0).expert.sha256 == resumed.expert.sha256


def test_the_model_has_its_own_architecture_again_and_the_expert_s_weights(
    local_store: Store, data: TaskData, toy: Recipe
) -> None:
    base, cache = tiny_base(local_store), NodeCache(local_store)
    clip = build_clip(base, cache.tensors(base.weights))
    expert = finetune(clip, data, toy, seed=0).expert
    state_dict = clip.model.state_dict()
    assert set(state_dict) == set(expert) == set(cache.tensors(base.weights).specs)
    assert [name for name in expert if not torch.equal(expert[name], state_dict[name])] == []
    assert len(list(continual_finetuning(clip, [(data, toy, 0), (data, replace(toy, method="full"), 1)]))) == 2


HEAD = Recipe(steps=8, batch_size=8, warmup_steps=2, lr=1e-3, augment="none", method="head")


def test_a_head_is_evidence_and_prototypes_and_no_expert(local_store: Store, data: TaskData) -> None:
    base, cache = tiny_base(local_store), NodeCache(local_store)
    record = train_expert(local_store, cache, base, data, HEAD, seed=0)
    assert record.expert is None
    assert record.evidence is not None
    assert record.content == record.evidence
    assert Evidence.from_file(cache.tensors(record.evidence)).expert is None
    assert ExpertRecord.from_json(record.to_json()) == record


@pytest.mark.parametrize("needed", [True, False])
def test_auto_keeps_the_expert_only_where_held_out_images_show_a_need(
    local_store: Store, data: TaskData, monkeypatch: pytest.MonkeyPatch, needed: bool
) -> None:
    base, cache = tiny_base(local_store), NodeCache(local_store)
    gain = 0.5 if needed else 0.0
    figures = HeldOutFigures(4.0, 1.5, 0.5 + gain, 0.5, gain, 0.1)
    monkeypatch.setattr("training.finetune.measure_held_out", lambda *_: figures)
    steps: list[int] = []
    recipe = replace(HEAD, method="auto", held_out=0.5)
    record = train_expert(local_store, cache, base, data, recipe, seed=0, progress=lambda step, _: steps.append(step))
    assert (record.expert is not None) == needed
    assert len(steps) == (8 if needed else 4), "an expert that is not needed is not trained to its end"
    assert record.metrics["held_out_gain"] == gain
    assert record.evidence is not None
    evidence = Evidence.from_file(cache.tensors(record.evidence))
    assert (evidence.expert is not None) == needed


def test_auto_without_held_out_images_is_refused() -> None:
    with pytest.raises(ConfigError, match="method is 'auto', which decides on held-out images: set held_out"):
        replace(HEAD, method="auto")
