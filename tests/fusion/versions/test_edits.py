"""Rolling back, removing a task, pinning: each publishes one version, and rewrites nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fusion.errors import UnknownTaskError, UnknownVersionError, VersionGoneError
from fusion.fuse import fuse_experts
from fusion.modes import open_mode
from fusion.store import Store
from fusion.versions import edits
from fusion.versions.gc import Policy, collect
from fusion.versions.history import Versions
from fusion.versions.manifest import Manifest
from tests.fusion.vectors import SIGNED, cache_of, decoupled, publish_each, random_base, random_expert

MODES = [{"name": "iterative"}, {"name": "joint"}, SIGNED, {"name": "signed", "bits": 1}]


def blobs(store: Store) -> set[str]:
    return {info.key for info in store.list("blobs/")}


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_a_rolled_back_store_answers_as_the_old_version_did(
    mode: dict[str, Any], local_store: Store, tmp_path: Path
) -> None:
    one, two, _ = publish_each(tmp_path, local_store, ["a", "b", "c"], mode=mode)
    before = blobs(local_store)
    edit = edits.rollback(Versions(local_store), 2)
    newest = Versions(local_store).newest()
    assert (edit.changed, edit.manifest) == (True, newest)
    assert edit.manifest.version == 4
    assert edit.manifest.state == two.state
    assert edit.manifest.removed == ()
    assert edit.manifest.created["kind"] == "rollback"
    assert blobs(local_store) == before, "no blob is written"
    for task in ("a", "b"):
        assert decoupled(local_store, tmp_path, edit.manifest, task) == decoupled(local_store, tmp_path, two, task)
    assert edits.rollback(Versions(local_store), 1).manifest.state == one.state


def test_rolling_back_to_the_current_state_publishes_nothing(local_store: Store, tmp_path: Path) -> None:
    publish_each(tmp_path, local_store, ["a", "b"])
    assert not edits.rollback(Versions(local_store), 2).changed
    edits.rollback(Versions(local_store), 1)
    again = edits.rollback(Versions(local_store), 1)
    assert (again.changed, again.manifest.version) == (False, 3)
    assert Versions(local_store).all_numbers() == [1, 2, 3]


def test_a_version_that_gc_deleted_or_never_was_is_refused_with_those_that_are_kept(
    local_store: Store, tmp_path: Path
) -> None:
    with pytest.raises(UnknownVersionError, match="nothing was published"):
        edits.rollback(Versions(local_store), 1)
    publish_each(tmp_path, local_store, ["a", "b", "c"])
    edits.pin(Versions(local_store), 1)
    collect(Versions(local_store), Policy(keep=1, keep_days=0))
    with pytest.raises(VersionGoneError, match=r"version 2 .* is gone; kept: 1, 4-5"):
        edits.rollback(Versions(local_store), 2)
    with pytest.raises(UnknownVersionError, match="has no version 9: the newest is 5"):
        edits.rollback(Versions(local_store), 9)
    for number in (0, -1):
        with pytest.raises(UnknownVersionError):
            edits.rollback(Versions(local_store), number)
    assert list(edits.rollback(Versions(local_store), 1).manifest.state.tasks) == ["a"]


def test_a_version_below_oldest_kept_is_refused_while_its_manifest_is_still_there(
    local_store: Store, tmp_path: Path
) -> None:
    publish_each(tmp_path, local_store, ["a", "b"])
    body = local_store.get("versions/00000001.json")
    collect(Versions(local_store), Policy(keep=1, keep_days=0))
    local_store.put_if_absent("versions/00000001.json", body)  # as during a gc
    for act in (edits.rollback, edits.pin):
        with pytest.raises(VersionGoneError, match="kept: 2-3"):
            act(Versions(local_store), 1)


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_without_a_task_all_others_decouple_bit_for_bit_as_before(
    mode: dict[str, Any], local_store: Store, tmp_path: Path
) -> None:
    *_, full = publish_each(tmp_path, local_store, ["a", "b", "c"], mode=mode)
    before = blobs(local_store)
    edit = edits.remove_task(Versions(local_store), "b")
    assert list(edit.manifest.state.tasks) == ["a", "c"]
    assert edit.manifest.removed == ("b",)
    assert blobs(local_store) == before
    for task in ("a", "c"):
        assert decoupled(local_store, tmp_path, edit.manifest, task) == decoupled(local_store, tmp_path, full, task)
    again = edits.remove_task(Versions(local_store), "b")
    assert (again.changed, again.manifest.version) == (False, 4)
    with pytest.raises(UnknownTaskError, match="did you mean"):
        edits.remove_task(Versions(local_store), "aa")


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_a_store_goes_on_after_its_last_task_was_removed(
    mode: dict[str, Any], local_store: Store, tmp_path: Path
) -> None:
    publish_each(tmp_path, local_store, ["a"], mode=mode)
    assert not edits.remove_task(Versions(local_store), "a").manifest.state.tasks
    manifest = publish_each(tmp_path, local_store, ["b"], mode=mode, seed=5)[0]
    assert list(manifest.state.tasks) == ["b"]
    assert manifest.removed == ("a",)
    assert decoupled(local_store, tmp_path, manifest, "b")


def test_fusing_a_removed_name_and_rolling_back_to_it_take_it_off_removed(local_store: Store, tmp_path: Path) -> None:
    publish_each(tmp_path, local_store, ["a", "b"])
    edits.remove_task(Versions(local_store), "b")
    assert edits.rollback(Versions(local_store), 2).manifest.removed == ()
    edits.remove_task(Versions(local_store), "b")
    edits.remove_task(Versions(local_store), "a")
    base, path = random_base(tmp_path, local_store)
    expert = random_expert(tmp_path, path, "b", seed=7)
    fused = fuse_experts(cache_of(local_store, tmp_path), base, [expert], mode=SIGNED).manifest
    assert (list(fused.state.tasks), fused.removed) == (["b"], ("a",))


def test_pins_come_and_go_and_every_publish_passes_them_on(local_store: Store, tmp_path: Path) -> None:
    publish_each(tmp_path, local_store, ["a", "b", "c"])
    versions = Versions(local_store)
    assert edits.pin(versions, 2).manifest.pinned == (2,)
    assert edits.pin(versions, 1).manifest.pinned == (1, 2)
    assert not edits.pin(versions, 1).changed
    assert edits.rollback(versions, 1).manifest.pinned == (1, 2)
    assert edits.unpin(versions, 1).manifest.pinned == (2,)
    assert not edits.unpin(versions, 3).changed
    with pytest.raises(UnknownVersionError):
        edits.unpin(versions, 99)


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_what_stays_of_a_task_is_told_as_it_is(mode: dict[str, Any]) -> None:
    text = edits.what_stays_of("pets", open_mode(mode).traces)
    assert ("never its signs" in text) == (mode["name"] == "signed")
    assert ("magnitudes and signs" in text) == (mode["name"] != "signed")
    assert "--from-archive" in text


def test_a_manifest_names_its_parent_by_number_and_hash(local_store: Store, tmp_path: Path) -> None:
    one, two = publish_each(tmp_path, local_store, ["a", "b"])
    assert two.parent is not None
    assert (two.parent.version, two.parent.sha256) == (1, one.sha256)
    assert Manifest.from_bytes(two.to_bytes(), "x").parent == two.parent
