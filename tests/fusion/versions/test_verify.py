"""Verifying: everything missing or damaged is named, with every version and task that it affects."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fusion.decouple import read_record
from fusion.errors import StoreUnavailableError, UnknownVersionError
from fusion.store import Store
from fusion.versions import edits
from fusion.versions.gc import Policy, collect
from fusion.versions.history import Versions, manifest_key
from fusion.versions.manifest import Manifest
from fusion.versions.verify import verify
from tests.fusion.faults import flip_a_bit
from tests.fusion.vectors import SIGNED, cache_of, publish_each

ITERATIVE = {"name": "iterative"}
JOINT = {"name": "joint"}


def test_a_whole_store_has_no_findings_and_every_object_is_read_once(any_store: Store, tmp_path: Path) -> None:
    publish_each(tmp_path, any_store, ["a", "b", "c"], mode=ITERATIVE)
    found = verify(Versions(any_store))
    objects = [info for prefix in ("versions/", "blobs/") for info in any_store.list(prefix)]
    objects += [info for info in any_store.list("bases/") if info.key.endswith(".safetensors")]
    assert found.findings == ()
    assert found.versions == (1, 2, 3)
    assert found.num_objects == len(objects)
    assert found.num_bytes == sum(info.bytes for info in objects)


@pytest.mark.parametrize("harm", ["flip", "delete"])
@pytest.mark.parametrize(
    ("what", "versions", "tasks"),
    [
        ("trigger of b", (2, 3), ("b",)),
        ("record of a", (1, 2, 3), ("a",)),
        ("tau of 2", (2,), ()),
        ("last_flip of 3", (3,), ()),
        ("base", (1, 2, 3), ()),
        ("manifest 1", (1,), ()),
        ("manifest 2", (2,), ()),
    ],
)
def test_what_is_bad_is_named_with_the_versions_and_tasks_it_affects(
    what: str, versions: tuple[int, ...], tasks: tuple[str, ...], harm: str, local_store: Store, tmp_path: Path
) -> None:
    manifests = publish_each(tmp_path, local_store, ["a", "b", "c"], mode=ITERATIVE)
    key = key_of(what, manifests, local_store, tmp_path)
    {"flip": flip_a_bit, "delete": delete}[harm](local_store, key)
    (finding,) = verify(Versions(local_store)).findings
    assert (finding.key, finding.versions, finding.tasks) == (key, versions, tasks)
    assert ("damaged" in finding.problem) == (harm == "flip")


@pytest.mark.parametrize("mode", [SIGNED, JOINT], ids=str)
def test_profiles_and_archives_are_verified_too(mode: dict[str, object], local_store: Store, tmp_path: Path) -> None:
    one, two = publish_each(tmp_path, local_store, ["a", "b"], mode=mode)
    archive = read_record(cache_of(local_store, tmp_path), two, "a").archive
    ref = one.state.shared["profile/1"] if mode == SIGNED else archive
    assert ref is not None
    flip_a_bit(local_store, ref.key)
    (finding,) = verify(Versions(local_store)).findings
    assert (finding.key, finding.versions) == (ref.key, (1, 2))


def test_a_damaged_newest_version_is_a_finding_and_the_others_are_read(local_store: Store, tmp_path: Path) -> None:
    publish_each(tmp_path, local_store, ["a", "b", "c"])
    flip_a_bit(local_store, manifest_key(3))
    found = verify(Versions(local_store))
    assert [(f.key, f.versions) for f in found.findings] == [(manifest_key(3), (3,))]
    assert found.versions == (1, 2, 3)


def test_a_store_without_an_intact_manifest_is_reported_manifest_by_manifest(
    local_store: Store, tmp_path: Path
) -> None:
    publish_each(tmp_path, local_store, ["a", "b"])
    for number in (1, 2):
        flip_a_bit(local_store, manifest_key(number))
    assert [f.versions for f in verify(Versions(local_store)).findings] == [(2,), (1,)]


def test_a_manifest_that_was_exchanged_for_another_one_is_found(local_store: Store, tmp_path: Path) -> None:
    publish_each(tmp_path, local_store, ["a", "b"])
    other = tmp_path / "other"
    other.mkdir()
    store = type(local_store)((other / "store").as_uri())
    foreign = publish_each(other, store, ["a"])[0]
    local_store.delete(manifest_key(1))
    local_store.put_if_absent(manifest_key(1), foreign.to_bytes())
    found = verify(Versions(local_store)).findings
    assert any(f.key == manifest_key(1) and f.versions == (1, 2) for f in found)


def test_what_gc_deleted_is_not_a_finding_and_what_a_pin_keeps_is(local_store: Store, tmp_path: Path) -> None:
    one, *_ = publish_each(tmp_path, local_store, ["a", "b", "c"], mode=ITERATIVE)
    edits.pin(Versions(local_store), 1)
    collect(Versions(local_store), Policy(keep=1, keep_days=0))
    found = verify(Versions(local_store))
    assert (found.versions, found.findings) == ((1, 4, 5), ())
    local_store.delete(one.state.shared["unified"].key)
    assert [f.versions for f in verify(Versions(local_store)).findings] == [(1,)]


def test_what_gc_deletes_meanwhile_is_not_a_finding(local_store: Store, tmp_path: Path) -> None:
    publish_each(tmp_path, local_store, ["a", "b", "c"], mode=ITERATIVE)
    started: list[bool] = []

    class Overtaken(type(local_store)):  # type: ignore[misc]
        def stream(self, key: str, *, chunk_bytes: int = 8 << 20) -> object:
            if not started:
                started.append(True)
                collect(Versions(local_store), Policy(keep=1, keep_days=0))
            return super().stream(key, chunk_bytes=chunk_bytes)

    assert verify(Versions(Overtaken(local_store.url)), num_threads=1).findings == ()
    assert started


def test_a_store_that_does_not_answer_is_not_a_finding(
    local_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UnknownVersionError, match="nothing was published"):
        verify(Versions(local_store))
    publish_each(tmp_path, local_store, ["a"])

    def silent(key: str, **_: object) -> None:
        raise StoreUnavailableError("no route")

    monkeypatch.setattr(local_store, "stream", silent)
    with pytest.raises(StoreUnavailableError):
        verify(Versions(local_store))


def key_of(what: str, manifests: list[Manifest], store: Store, folder: Path) -> str:
    last = manifests[-1]
    keys: dict[str, Callable[[], str]] = {
        "trigger of b": lambda: read_record(cache_of(store, folder), last, "b").trigger.key,
        "record of a": lambda: last.state.tasks["a"].record.key,
        "tau of 2": lambda: manifests[1].state.shared["unified"].key,
        "last_flip of 3": lambda: manifests[2].state.shared["last_flip"].key,
        "base": lambda: last.base.weights.key,
        "manifest 1": lambda: manifest_key(1),
        "manifest 2": lambda: manifest_key(2),
    }
    return keys[what]()


def delete(store: Store, key: str) -> None:
    store.delete(key)
