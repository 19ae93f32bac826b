from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fusion.answers.clip import build_clip
from fusion.store import Store
from fusion.store.node_cache import NodeCache
from fusion.tensors import check_same_layout
from fusion.versions.experts import find_expert, find_training_state, num_attempts
from tests.tiny import tiny_base, tiny_task
from training.data.task_data import load_task_data
from training.expert import train_expert
from training.identity import identity_of
from training.recipe import Recipe

RECIPE = Recipe(steps=12, batch_size=8, lr=1e-3, warmup_steps=2, augment="none", save_every_steps=4)


pytestmark = pytest.mark.usefixtures("one_thread")


class Killed(BaseException):
    """Stands for a SIGKILL: no code of ours catches it."""


def kill_at(step: int):  # type: ignore[no-untyped-def]
    def progress(done: int, _: float) -> None:
        if done == step:
            raise Killed

    return progress


def test_an_expert_is_a_full_state_dict_with_prototypes_and_nothing_else_is_left(
    any_store: Store, tmp_path: Path
) -> None:
    base, cache = tiny_base(any_store), NodeCache(any_store, tmp_path / "cache")
    data = load_task_data("colours", tiny_task(tmp_path / "colours", num_train=4))
    record = train_expert(any_store, cache, base, data, RECIPE, seed=0)
    assert record == find_expert(any_store, identity_of(base, data, RECIPE, 0))
    assert (record.task, record.classes, record.base) == ("colours", data.classes, base.sha256)
    assert record.metrics["steps"] == 12
    check_same_layout(cache.tensors(base.weights), cache.tensors(record.expert))
    assert record.prototypes is not None
    prototypes = cache.tensors(record.prototypes).tensor("prototypes")
    assert prototypes.shape == (4, 32)
    torch.testing.assert_close(prototypes.norm(dim=1), torch.ones(4))
    clip = build_clip(base, cache.tensors(base.weights))
    features = clip.image_features(clip.pixels([data.train.image(index) for index in range(4)]))  # all of class 0
    texts = clip.text_features(["a red picture.", "red."])
    expected = torch.nn.functional.normalize(features.mean(0) / 2 + texts.mean(0) / 2, dim=0)
    torch.testing.assert_close(prototypes[0], expected)
    keys = [info.key for info in any_store.list("experts/")]
    assert len(keys) == 4  # record, weights, prototypes, evidence


def test_a_second_call_trains_nothing(local_store: Store, tmp_path: Path) -> None:
    base, cache = tiny_base(local_store), NodeCache(local_store)
    data = load_task_data("colours", tiny_task(tmp_path / "colours", num_train=4))
    first = train_expert(local_store, cache, base, data, RECIPE, seed=0)
    assert train_expert(local_store, cache, base, data, RECIPE, seed=0, progress=kill_at(1)) == first
    with pytest.raises(Killed):  # another seed is another expert
        train_expert(local_store, cache, base, data, RECIPE, seed=1, progress=kill_at(1))


def test_a_killed_training_resumes_from_its_state_and_ends_with_the_same_bytes(
    local_store: Store, tmp_path: Path
) -> None:
    base, cache = tiny_base(local_store), NodeCache(local_store)
    data = load_task_data("colours", tiny_task(tmp_path / "colours", num_train=4))
    identity = identity_of(base, data, RECIPE, 0)
    with pytest.raises(Killed):
        train_expert(local_store, cache, base, data, RECIPE, seed=0, progress=kill_at(10))
    state = find_training_state(local_store, identity)
    assert state is not None
    assert state.step == 8
    assert num_attempts(local_store, identity) == 1
    steps: list[int] = []
    resumed = train_expert(local_store, cache, base, data, RECIPE, seed=0, progress=lambda step, _: steps.append(step))
    assert steps == [9, 10, 11, 12]
    assert find_training_state(local_store, identity) is None
    undisturbed = replace(RECIPE, save_every_steps=100)
    local_store.delete(f"experts/{identity}.json")
    assert train_expert(local_store, cache, base, data, undisturbed, seed=0).expert.sha256 == resumed.expert.sha256


def test_a_damaged_state_costs_only_its_steps(local_store: Store, tmp_path: Path) -> None:
    base, cache = tiny_base(local_store), NodeCache(local_store)
    data = load_task_data("colours", tiny_task(tmp_path / "colours", num_train=4))
    with pytest.raises(Killed):
        train_expert(local_store, cache, base, data, RECIPE, seed=0, progress=kill_at(10))
    state = find_training_state(local_store, identity_of(base, data, RECIPE, 0))
    assert state is not None
    path = local_store.local_path(state.tensors.key)
    assert path is not None
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1] + b"\x00")
    steps: list[int] = []
    train_expert(local_store, cache, base, data, RECIPE, seed=0, progress=lambda step, _: steps.append(step))
    assert steps == list(range(1, 13))
