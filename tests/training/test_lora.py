"""Training method `lora`: what moves, at which rank, and what a trigger keeps of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fusion.decouple import decoupled_tensors, read_record
from fusion.errors import ConfigError
from fusion.fuse import ExpertToFuse, fuse_experts
from fusion.modes import open_mode
from fusion.store import Store
from fusion.store.node_cache import NodeCache
from fusion.tensors import TensorFile
from fusion.versions.experts import find_training_state
from tests.tiny import BATCH_NORM_CFG, tiny_base, tiny_task
from training.data.task_data import TaskData, load_task_data
from training.expert import train_expert
from training.identity import identity_of
from training.recipe import Recipe

RECIPE = Recipe(
    steps=9,
    batch_size=8,
    lr=2e-2,
    warmup_steps=2,
    augment="none",
    save_every_steps=4,
    method="lora",
    lora_rank=3,
)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def data(tmp_path: Path) -> TaskData:
    return load_task_data("colours", tiny_task(tmp_path / "colours", num_train=5))


def changes(base: TensorFile, expert: TensorFile) -> dict[str, np.ndarray]:
    """The changed matrices of a task vector, [first dimension, rest]."""
    found = {name: expert.float32(name) - base.float32(name) for name in base.fused_names()}
    return {name: delta.reshape(len(delta), -1) for name, delta in found.items() if delta.any()}


def rank(matrix: np.ndarray) -> int:
    values = np.linalg.svd(matrix.astype(np.float64), compute_uv=False)
    return int((values > 1e-3 * values[0]).sum())


@pytest.mark.parametrize("targets", ["mlp", "all"])
def test_matrices_move_by_the_rank_and_everything_else_rests(local_store: Store, data: TaskData, targets: str) -> None:
    base, cache = tiny_base(local_store), NodeCache(local_store)
    recipe = replace(RECIPE, lora_targets=targets)
    record = train_expert(local_store, cache, base, data, recipe, seed=0)
    assert record.expert is not None
    moved = changes(cache.tensors(base.weights), cache.tensors(record.expert))
    assert {rank(delta) for delta in moved.values()} == {3}
    mlp = {name for name in moved if ".mlp." in name}
    assert len(mlp) == 2 * 3, "two layers of images, one of texts"
    attention = {name for name in moved if name.endswith("in_proj_weight")}
    assert len(attention) == (3 if targets == "all" else 0)
    assert ("visual.conv1.weight" in moved) == (targets == "all")
    assert all(name.endswith("weight") for name in moved)


def test_it_resumes_with_the_factors_alone_and_ends_with_the_same_bytes(local_store: Store, data: TaskData) -> None:
    base, cache = tiny_base(local_store), NodeCache(local_store)
    identity = identity_of(base, data, RECIPE, 0)

    def killed_at_6(step: int, _: float) -> None:
        if step == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_expert(local_store, cache, base, data, RECIPE, seed=0, progress=killed_at_6)
    state = find_training_state(local_store, identity)
    assert state is not None
    names = set(cache.tensors(state.tensors).specs) - {"step"}
    assert all(name.endswith((".down", ".up")) for name in names)
    resumed = train_expert(local_store, cache, base, data, RECIPE, seed=0)
    local_store.delete(f"experts/{identity}.json")
    again = train_expert(local_store, cache, base, data, replace(RECIPE, save_every_steps=100), seed=0)
    assert resumed.expert is not None
    assert again.expert is not None
    assert again.expert.sha256 == resumed.expert.sha256


def test_a_trigger_keeps_its_rank_and_loses_next_to_nothing(local_store: Store, data: TaskData) -> None:
    base, cache = tiny_base(local_store), NodeCache(local_store)
    record = train_expert(local_store, cache, base, data, RECIPE, seed=0)
    settings = {"name": "lowrank", "quality": 0.002}
    version = fuse_experts(cache, base, [ExpertToFuse.from_record(record)], mode=settings).manifest
    theta = cache.tensors(base.weights)
    assert record.expert is not None
    exact = changes(theta, cache.tensors(record.expert))
    found = {
        name: tensor.numpy() - theta.float32(name) for name, tensor in decoupled_tensors(cache, version, "colours")
    }
    error = sum(np.square(found[name].reshape(delta.shape) - delta).sum() for name, delta in exact.items())
    assert error < 1e-6 * sum(np.square(delta).sum() for delta in exact.values())
    mode = open_mode(settings)
    trigger = cache.tensors(read_record(cache, version, "colours").trigger)
    assert trigger.read("count").max() == 3
    assert mode.task_bytes(read_record(cache, version, "colours")) < sum(
        2 * 3 * 4 * sum(d.shape) for d in exact.values()
    )


def test_convolutions_move_too_and_texts_rest_where_asked(local_store: Store, data: TaskData) -> None:
    base, cache = tiny_base(local_store, model_cfg=BATCH_NORM_CFG), NodeCache(local_store)
    recipe = replace(RECIPE, lora_targets="all", text_lr=0)
    record = train_expert(local_store, cache, base, data, recipe, seed=0)
    assert record.expert is not None
    moved = changes(cache.tensors(base.weights), cache.tensors(record.expert))
    assert all(name.startswith("visual.") for name in moved)


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"lora_rank is 0"):
        Recipe(method="lora", lora_rank=0)
