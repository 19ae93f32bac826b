"""Garbage collection: what goes, what stays, and that it stops rather than delete what it can't judge."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from fusion.decouple import read_record
from fusion.errors import BlobNotFoundError, ConduError, ConfigError, DamagedBlobError, UnknownVersionError
from fusion.fuse import ExpertToFuse, fuse_experts
from fusion.store import Store
from fusion.store.blobs import canonical_json
from fusion.store.local import LocalStore
from fusion.versions import edits
from fusion.versions.experts import ExpertRecord, find_expert, put_expert, put_expert_file, put_training_state
from fusion.versions.gc import Policy, collect
from fusion.versions.history import Versions, manifest_key
from fusion.versions.manifest import Manifest
from fusion.versions.publish import Draft, publish
from fusion.versions.verify import verify
from tests.fusion.faults import flip_a_bit
from tests.fusion.vectors import SIGNED, cache_of, decoupled, publish_each, random_base, random_expert

ITERATIVE = {"name": "iterative"}
ALL_OLD = Policy(keep=1, keep_days=0)


def keys(store: Store, prefix: str = "") -> set[str]:
    return {info.key for info in store.list(prefix)}


def test_old_versions_and_what_only_they_name_go_and_the_rest_decouples_as_before(
    any_store: Store, tmp_path: Path
) -> None:
    *_, last = publish_each(tmp_path, any_store, ["a", "b", "c"], mode=ITERATIVE)
    before = {task: decoupled(any_store, tmp_path, last, task) for task in "abc"}
    found = collect(Versions(any_store), ALL_OLD)
    newest = Versions(any_store).newest()
    assert newest is not None
    assert (found.version, found.versions, found.oldest_kept) == (4, (1, 2), 3)
    assert len(found.blobs) == 4, "tau and last_flip of versions 1 and 2"
    assert (newest.version, newest.last_gc, newest.oldest_kept) == (4, 4, 3)
    assert newest.state == last.state
    assert Versions(any_store).all_numbers() == [3, 4]
    assert not keys(any_store) & {info.key for info in found.blobs}
    assert verify(Versions(any_store)).findings == ()
    cold = tmp_path / "cold"
    assert {task: decoupled(any_store, cold, newest, task) for task in "abc"} == before


def test_a_collection_with_nothing_to_collect_publishes_nothing(local_store: Store, tmp_path: Path) -> None:
    publish_each(tmp_path, local_store, ["a", "b"])
    assert collect(Versions(local_store)).version is None
    assert collect(Versions(local_store), ALL_OLD).version == 3
    before = keys(local_store)
    for _ in range(3):
        assert collect(Versions(local_store), ALL_OLD).version is None
    assert keys(local_store) == before
    with pytest.raises(UnknownVersionError, match="nothing was published"):
        collect(Versions(type(local_store)(local_store.url + "-empty")))


def test_a_dry_run_reports_what_would_go_and_changes_nothing(local_store: Store, tmp_path: Path) -> None:
    publish_each(tmp_path, local_store, ["a", "b", "c"], mode=ITERATIVE)
    before = keys(local_store)
    plan = collect(Versions(local_store), ALL_OLD, dry_run=True)
    assert keys(local_store) == before
    assert plan.version is None
    done = collect(Versions(local_store), ALL_OLD)
    assert (plan.versions, plan.blobs, plan.bytes) == (done.versions, done.blobs, done.bytes)
    assert plan.bytes == sum(info.bytes for info in (*plan.manifests, *plan.blobs)) > 0


def test_the_newest_the_young_and_the_pinned_are_kept(local_store: Store, tmp_path: Path) -> None:
    publish_each(tmp_path, local_store, [f"t{i}" for i in range(6)], mode=ITERATIVE)

    def goes(**policy: Any) -> tuple[int, ...]:
        return collect(Versions(local_store), Policy(**policy), dry_run=True).versions

    assert goes() == ()
    assert goes(keep=20, keep_days=0) == ()
    assert goes(keep=1, keep_days=7) == ()
    assert goes(keep=4, keep_days=0) == (1, 2)
    assert isinstance(local_store, LocalStore)
    for number in (1, 2, 3, 4):
        age(local_store.root / manifest_key(number), days=8)
    assert goes(keep=1) == (1, 2, 3, 4)
    assert goes(keep=3) == (1, 2, 3)
    edits.pin(Versions(local_store), 2)
    assert goes(keep=1) == (1, 3, 4)
    with pytest.raises(ConfigError, match="--keep 0"):
        goes(keep=0)
    with pytest.raises(ConfigError, match="--keep-days -1"):
        goes(keep_days=-1)


def test_a_pinned_version_stays_whole_until_it_is_unpinned(local_store: Store, tmp_path: Path) -> None:
    one, *_ = publish_each(tmp_path, local_store, ["a", "b", "c"], mode=ITERATIVE)
    edits.pin(Versions(local_store), 1)
    collect(Versions(local_store), ALL_OLD)
    assert Versions(local_store).all_numbers() == [1, 4, 5]
    assert decoupled(local_store, tmp_path / "cold", Versions(local_store).read(1), "a")
    assert verify(Versions(local_store)).versions == (1, 4, 5)
    edits.unpin(Versions(local_store), 1)
    assert collect(Versions(local_store), ALL_OLD).versions == (1, 4, 5)
    assert local_store.head(one.state.shared["unified"].key) is None


def test_oldest_kept_never_goes_back(local_store: Store, tmp_path: Path) -> None:
    publish_each(tmp_path, local_store, ["a", "b", "c"])
    collect(Versions(local_store), ALL_OLD)
    local_store.put_if_absent("blobs/00/" + "0" * 64 + "-0123456789abcdef", b"left by a crash")
    found = collect(Versions(local_store), Policy(keep=20, keep_days=100))
    newest = Versions(local_store).newest()
    assert newest is not None
    assert (found.version, found.versions, len(found.blobs)) == (5, (), 1)
    assert newest.oldest_kept == 3


def test_blobs_of_a_publisher_that_died_are_orphans_and_go(local_store: Store, tmp_path: Path) -> None:
    publish_each(tmp_path, local_store, ["a"])
    orphan = "blobs/ab/" + "ab" * 32 + "-0123456789abcdef"
    local_store.put_if_absent(orphan, b"half of a publish")
    assert [info.key for info in collect(Versions(local_store)).blobs] == [orphan]
    assert local_store.head(orphan) is None


def test_what_a_killed_collection_left_is_deleted_by_the_next(local_store: Store, tmp_path: Path) -> None:
    publish_each(tmp_path, local_store, ["a", "b", "c"], mode=ITERATIVE)
    plan = collect(Versions(local_store), ALL_OLD, dry_run=True)

    def committed_and_killed(parent: Manifest | None, nonce: str) -> Draft:
        assert parent is not None
        return Draft(parent.base, dict(parent.mode), parent.state, oldest_kept=plan.oldest_kept, is_gc=True)

    publish(Versions(local_store), committed_and_killed, created={"kind": "gc", "why": "killed"})
    found = collect(Versions(local_store), Policy())
    assert found.versions == (1, 2)
    assert {info.key for info in plan.blobs} <= {info.key for info in found.blobs}
    assert verify(Versions(local_store)).findings == ()


@pytest.mark.parametrize("which", ["record", "manifest", "pinned manifest", "missing manifest"])
def test_what_can_not_be_read_stops_it_before_anything_is_deleted(
    which: str, local_store: Store, tmp_path: Path
) -> None:
    manifests = publish_each(tmp_path, local_store, ["a", "b", "c", "d"], mode=ITERATIVE)
    if which == "pinned manifest":
        edits.pin(Versions(local_store), 1)
    key = {
        "record": manifests[1].state.tasks["b"].record.key,
        "manifest": manifest_key(3),
        "pinned manifest": manifest_key(1),
        "missing manifest": manifest_key(3),
    }[which]
    if which == "missing manifest":
        local_store.delete(key)
    else:
        flip_a_bit(local_store, key)
    before = keys(local_store)
    expected: type[ConduError] = BlobNotFoundError if which == "missing manifest" else DamagedBlobError
    with pytest.raises(expected, match=key):
        collect(Versions(local_store), Policy(keep=2, keep_days=0))
    assert keys(local_store) == before


def test_a_damaged_version_that_has_to_go_anyway_does_not_stop_it(local_store: Store, tmp_path: Path) -> None:
    publish_each(tmp_path, local_store, ["a", "b", "c"])
    flip_a_bit(local_store, manifest_key(1))
    assert collect(Versions(local_store), ALL_OLD).versions == (1, 2)


def test_files_of_dead_writers_go_and_those_of_living_ones_stay(local_store: Store, tmp_path: Path) -> None:
    publish_each(tmp_path, local_store, ["a"])
    dead, alive = local_store.scratch / "write-dead.safetensors", local_store.scratch / "put-1-abc"
    dead.write_bytes(b"x")
    alive.write_bytes(b"x")
    age(dead, days=2)
    assert collect(Versions(local_store), dry_run=True).scratch == (dead,)
    assert dead.exists()
    collect(Versions(local_store))
    assert not dead.exists()
    assert alive.exists()


def trained(store: Store, folder: Path, base: Path, task: str, *, base_sha256: str, seed: int) -> ExpertRecord:
    """An expert in the store with its record, a stray file of a training that lost, and a state left by a crash."""
    expert = random_expert(folder, base, task, seed=seed)
    assert isinstance(expert.weights, Path)
    identity = f"{seed:064x}"
    put_expert_file(store, identity, base)
    put_training_state(store, identity, base, step=5)
    weights = put_expert_file(store, identity, expert.weights)
    return put_expert(store, ExpertRecord(identity, task, (), (), base_sha256, weights))


@pytest.mark.parametrize("archive", [False, True])
def test_fused_experts_go_if_requested_unless_a_version_names_them(
    archive: bool, local_store: Store, tmp_path: Path
) -> None:
    base, path = random_base(tmp_path, local_store)
    fused, waiting = (
        trained(local_store, tmp_path, path, task, base_sha256=base.sha256, seed=seed)
        for seed, task in enumerate(("fused", "waiting"), start=1)
    )
    unfinished = put_training_state(local_store, "f" * 64, path, step=3).tensors.key
    manifest = fuse_experts(
        cache_of(local_store, tmp_path), base, [ExpertToFuse.from_record(fused)], mode=SIGNED, archive=archive
    ).manifest
    assert collect(Versions(local_store)).experts == ()
    collect(Versions(local_store), Policy(experts=True))
    left = keys(local_store, "experts/")
    records = {f"experts/{record.identity}.json" for record in (fused, waiting)}
    assert left == records | {waiting.expert.key, unfinished} | ({fused.expert.key} if archive else set())
    assert find_expert(local_store, fused.identity) == fused, "the record stays: nothing is trained again"
    again = fuse_experts(
        cache_of(local_store, tmp_path), base, [ExpertToFuse.from_record(fused)], mode=SIGNED, archive=archive
    )
    assert again.manifest == manifest


def test_archived_experts_of_pinned_versions_stay(local_store: Store, tmp_path: Path) -> None:
    base, path = random_base(tmp_path, local_store)
    cache = cache_of(local_store, tmp_path)
    record = trained(local_store, tmp_path, path, "a", base_sha256=base.sha256, seed=1)
    first = fuse_experts(cache, base, [ExpertToFuse.from_record(record)], mode={"name": "joint"}).manifest
    edits.pin(Versions(local_store), 1)
    edits.remove_task(Versions(local_store), "a")
    collect(Versions(local_store), Policy(keep=1, keep_days=0, experts=True))
    archive = read_record(cache, first, "a").archive
    assert archive is not None
    assert local_store.head(archive.key) is not None


def test_a_record_of_something_else_is_named(local_store: Store, tmp_path: Path) -> None:
    one, *_ = publish_each(tmp_path, local_store, ["a", "b"])
    ref = one.state.tasks["a"].record
    body = canonical_json({"no": "record"})
    local_store.delete(ref.key)
    local_store.put_if_absent(ref.key, body)
    with pytest.raises(ConduError, match=ref.key):
        collect(Versions(local_store), ALL_OLD)


def age(path: Path, *, days: float) -> None:
    then = time.time() - days * 86400
    os.utime(path, (then, then))
