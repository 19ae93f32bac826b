"""Fusing into a store: idempotent, refused without a trace, and never half done."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fusion.decouple import decoupled_tensors, read_record
from fusion.errors import BaseMismatchError, ConduError, ConfigError, StateDictError, TaskNameError
from fusion.fuse import ExpertToFuse, fuse_experts
from fusion.store import Store, open_store
from fusion.tensors import TensorFile, write_tensors
from fusion.versions.history import Versions
from tests.fusion.faults import keys
from tests.fusion.vectors import cache_of, random_base, random_expert

SIGNED = {"name": "signed", "bits": 2}
MODES = [
    {"name": "iterative"},
    {"name": "joint"},
    SIGNED,
    {"name": "signed", "bits": 1},
    {"name": "lowrank", "quality": 0.3},
]


def test_fusing_the_same_expert_twice_is_a_no_op_that_says_so(any_store: Store, tmp_path: Path) -> None:
    base, path = random_base(tmp_path, any_store)
    expert = random_expert(tmp_path, path, "pets", seed=1)
    first = fuse_experts(cache_of(any_store, tmp_path), base, [expert], mode=SIGNED)
    before = keys(any_store)
    again = fuse_experts(cache_of(any_store, tmp_path), base, [expert], mode=SIGNED)
    assert (first.fused, first.unchanged) == (("pets",), ())
    assert (again.fused, again.unchanged) == ((), ("pets",))
    assert again.manifest == first.manifest
    assert keys(any_store) == before


def test_another_expert_under_a_taken_name_is_refused_and_leaves_nothing(local_store: Store, tmp_path: Path) -> None:
    base, path = random_base(tmp_path, local_store)
    cache = cache_of(local_store, tmp_path)
    fuse_experts(cache, base, [random_expert(tmp_path, path, "pets", seed=1)], mode=SIGNED)
    before = keys(local_store)
    other = random_expert(tmp_path, path, "pets", seed=2)
    with pytest.raises(TaskNameError, match="'pets' is taken in version 1"):
        fuse_experts(cache, base, [other], mode=SIGNED)
    assert keys(local_store) == before
    replaced = fuse_experts(cache, base, [other], mode=SIGNED, replace=True)
    assert replaced.manifest.version == 2
    assert list(replaced.manifest.state.tasks) == ["pets"]


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_one_bad_expert_among_good_ones_publishes_nothing_and_leaves_nothing(
    mode: dict[str, object], local_store: Store, tmp_path: Path
) -> None:
    base, path = random_base(tmp_path, local_store)
    before = keys(local_store)
    good = random_expert(tmp_path, path, "good", seed=1)
    tensors = {name: TensorFile(path).tensor(name).clone() for name in TensorFile(path).specs}
    tensors["text.proj"][3, 3] = float("nan")
    write_tensors(tmp_path / "bad.safetensors", tensors)
    with pytest.raises(StateDictError, match=r"text\.proj"):
        fuse_experts(
            cache_of(local_store, tmp_path), base, [good, ExpertToFuse("bad", tmp_path / "bad.safetensors")], mode=mode
        )
    left = {key for key in keys(local_store) - before if not key.startswith("experts/")}
    assert not left, "archived experts may stay, no blob and no version may"
    assert Versions(local_store).newest() is None


@pytest.mark.parametrize(
    ("names", "message"),
    [(["Pets"], "ill-formed"), (["-x"], "ill-formed"), (["a" * 65], "ill-formed"), (["a", "a"], "given twice")],
)
def test_task_names_are_checked_before_anything_is_read(
    names: list[str], message: str, local_store: Store, tmp_path: Path
) -> None:
    base, path = random_base(tmp_path, local_store)
    experts = [replace(random_expert(tmp_path, path, "x", seed=i), task=name) for i, name in enumerate(names)]
    with pytest.raises(TaskNameError, match=message):
        fuse_experts(cache_of(local_store, tmp_path), base, experts, mode=SIGNED)


def test_a_store_keeps_its_base_and_its_mode(local_store: Store, tmp_path: Path) -> None:
    base, path = random_base(tmp_path, local_store)
    cache = cache_of(local_store, tmp_path)
    fuse_experts(cache, base, [random_expert(tmp_path, path, "a", seed=1)], mode=SIGNED)
    stranger, other_path = random_base(tmp_path, local_store, seed=5)
    with pytest.raises(BaseMismatchError, match="one store has one base"):
        fuse_experts(cache, stranger, [random_expert(tmp_path, other_path, "b", seed=2)], mode=SIGNED)
    with pytest.raises(ConfigError, match="is fused with mode signed"):
        fuse_experts(cache, base, [random_expert(tmp_path, path, "b", seed=2)], mode={"name": "iterative"})


def test_joint_archives_its_experts_without_being_asked(local_store: Store, tmp_path: Path) -> None:
    base, path = random_base(tmp_path, local_store)
    cache = cache_of(local_store, tmp_path)
    first = fuse_experts(cache, base, [random_expert(tmp_path, path, "a", seed=1)], mode={"name": "joint"}).manifest
    record = read_record(cache, first, "a")
    assert record.archive is not None
    assert local_store.head(record.archive.key) is not None


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_a_lone_task_decouples_close_to_its_expert_and_keeps_its_buffers(
    mode: dict[str, object], local_store: Store, tmp_path: Path
) -> None:
    base, path = random_base(tmp_path, local_store)
    expert = random_expert(tmp_path, path, "a", seed=1)
    assert isinstance(expert.weights, Path)
    tensors = {name: TensorFile(expert.weights).tensor(name).clone() for name in TensorFile(expert.weights).specs}
    tensors["bn.num_batches_tracked"] = torch.tensor(99)
    write_tensors(expert.weights, tensors)
    cache = cache_of(local_store, tmp_path)
    manifest = fuse_experts(cache, base, [expert], mode=mode).manifest
    decoupled = dict(decoupled_tensors(cache, manifest, "a"))
    assert set(decoupled) == set(tensors)
    assert decoupled["bn.num_batches_tracked"] == 99
    assert torch.equal(decoupled["bn.running_mean"], tensors["bn.running_mean"])
    worst = {"iterative": 1e-5, "joint": 1e-5, "signed": 0.4, "lowrank": 0.2}[str(mode["name"])]
    for name in ("text.proj", "visual.conv.weight"):
        delta = tensors[name] - TensorFile(path).tensor(name)
        error = (decoupled[name] - tensors[name]).norm() / delta.norm()
        assert error < worst, (name, error)


@pytest.mark.parametrize("mode", [{"name": "iterative"}, SIGNED], ids=str)
def test_racing_publishers_all_get_published(mode: dict[str, object], local_store: Store, tmp_path: Path) -> None:
    base, path = random_base(tmp_path, local_store)
    experts = [random_expert(tmp_path, path, f"t{i}", seed=i) for i in range(6)]
    errors: list[BaseException] = []
    barrier = threading.Barrier(len(experts))

    def publisher(expert: ExpertToFuse) -> None:
        try:
            barrier.wait()
            cache = cache_of(open_store(local_store.url), tmp_path)
            fuse_experts(cache, base, [expert], mode=mode)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=publisher, args=(expert,)) for expert in experts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    newest = Versions(local_store).newest()
    assert newest is not None
    assert newest.version == len(experts)
    assert set(newest.state.tasks) == {f"t{i}" for i in range(6)}
    assert sorted(entry.session for entry in newest.state.tasks.values()) == [1, 2, 3, 4, 5, 6]
    for task in newest.state.tasks:
        assert dict(decoupled_tensors(cache_of(local_store, tmp_path), newest, task))


def test_a_version_that_would_name_a_missing_blob_is_not_published(local_store: Store, tmp_path: Path) -> None:
    base, path = random_base(tmp_path, local_store)
    cache = cache_of(local_store, tmp_path)
    experts = [random_expert(tmp_path, path, task, seed=seed) for seed, task in enumerate("abc")]
    second = fuse_experts(cache, base, experts[:2], mode=SIGNED).manifest
    local_store.delete(second.state.tasks["a"].record.key)
    with pytest.raises(ConduError, match="is missing"):
        fuse_experts(cache, base, experts[2:], mode=SIGNED)
    assert Versions(local_store).newest_number() == 1
