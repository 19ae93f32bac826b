"""Versions: the commit point, lost races, a success whose reply was lost, damage, and what a poll costs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fusion.errors import DamagedBlobError, FormatError, StoreError, UnknownVersionError, VersionGoneError
from fusion.fuse import fuse_experts
from fusion.store import Store
from fusion.versions.history import Commit, Versions, manifest_key
from fusion.versions.manifest import Manifest, Parent
from tests.counting import CountingStore
from tests.fusion.vectors import cache_of, random_base, random_expert

SIGNED = {"name": "signed", "bits": 2}


@pytest.fixture
def three_versions(local_store: Store, tmp_path: Path) -> Store:
    base, path = random_base(tmp_path, local_store)
    for i in range(3):
        expert = random_expert(tmp_path, path, f"t{i}", seed=i)
        fuse_experts(cache_of(local_store, tmp_path), base, [expert], mode=SIGNED)
    return local_store


class LosingStore(CountingStore):
    """Loses the reply to one successful write of a manifest."""

    lose_next_answer = False

    def put_if_absent(self, key: str, body: bytes | Path) -> bool:
        written = super().put_if_absent(key, body)
        if self.lose_next_answer and key.startswith("versions/"):
            self.lose_next_answer = False
            return super().put_if_absent(key, body)  # the client tries again, and finds its own object
        return written


def test_an_empty_store_has_no_newest_version(local_store: Store) -> None:
    assert Versions(local_store).newest() is None
    with pytest.raises(UnknownVersionError, match="nothing was published"):
        Versions(local_store).read(1)


def test_versions_know_their_parents(three_versions: Store) -> None:
    versions = Versions(three_versions)
    assert versions.all_numbers() == [1, 2, 3]
    manifests = [versions.read(number) for number in versions.all_numbers()]
    assert [m.parent for m in manifests] == [None, *(Parent(m.version, m.sha256) for m in manifests[:2])]
    assert len({m.nonce for m in manifests}) == 3
    assert manifests[-1] == versions.newest()
    assert manifests[0].created["packages"]["torch"]


def test_a_poll_costs_one_request(three_versions: Store) -> None:
    counting = CountingStore(three_versions)
    versions = Versions(counting)
    versions.newest_number()
    counting.taken()
    assert versions.newest_number() == 3
    assert counting.taken() == {"head": 1}


def test_a_success_whose_reply_was_lost_counts_as_a_success(three_versions: Store, tmp_path: Path) -> None:
    counting = LosingStore(three_versions)
    counting.lose_next_answer = True
    base, path = random_base(tmp_path, three_versions)
    cache = cache_of(counting, tmp_path)
    result = fuse_experts(cache, base, [random_expert(tmp_path, path, "lost", seed=8)], mode=SIGNED)
    assert not counting.lose_next_answer
    assert result.manifest.version == 4
    assert Versions(three_versions).all_numbers() == [1, 2, 3, 4], "published once"


def test_the_loser_of_a_race_publishes_nothing(three_versions: Store) -> None:
    newest = Versions(three_versions).newest()
    assert newest is not None
    rival = Manifest.from_bytes(newest.to_bytes(), "x")
    object.__setattr__(rival, "nonce", "another")
    assert Versions(three_versions).commit(rival.sealed()) is Commit.LOST


@pytest.mark.parametrize("damage", ["flip", "truncate", "resign"])
def test_a_damaged_manifest_is_found_and_named(damage: str, three_versions: Store) -> None:
    key = manifest_key(3)
    body = three_versions.get(key)
    three_versions.delete(key)
    if damage == "flip":
        body = body.replace(b'"version":3', b'"version":4')
    elif damage == "truncate":
        body = body[:-10]
    else:
        body = body.replace(b'"sha256":"', b'"sha256":"0', 1)
    three_versions.put_if_absent(key, body)
    with pytest.raises(DamagedBlobError, match=r"00000003\.json"):
        Versions(three_versions).newest()
    assert Versions(three_versions).read(2).version == 2


@pytest.mark.parametrize(
    ("written", "advice"),
    [("condu/3", "upgrade condu"), ("condu/1", "before the first release. Fuse the experts again")],
)
def test_a_manifest_of_another_format_is_refused_with_what_to_do(
    three_versions: Store, written: str, advice: str
) -> None:
    import hashlib

    from fusion.store.blobs import canonical_json

    value = json.loads(three_versions.get(manifest_key(3)))
    value.pop("sha256")
    value["format"] = written
    value["sha256"] = hashlib.sha256(canonical_json(value)).hexdigest()
    three_versions.delete(manifest_key(3))
    three_versions.put_if_absent(manifest_key(3), canonical_json(value))
    with pytest.raises(FormatError, match=advice):
        Versions(three_versions).newest()


def test_the_newest_is_found_over_a_gap_that_gc_left(three_versions: Store) -> None:
    bodies = {number: three_versions.get(manifest_key(number)) for number in (2, 3)}
    for number in bodies:
        three_versions.delete(manifest_key(number))
    behind = Versions(three_versions)
    assert behind.newest_number() == 1
    for number in (3, 2):  # 2 comes last, as from a publisher that slept while gc passed its number
        three_versions.put_if_absent(manifest_key(number), bodies[number])
    assert behind.newest_number() == 3


def test_a_deleted_version_and_one_that_never_was_are_told_apart(three_versions: Store) -> None:
    three_versions.delete(manifest_key(1))
    with pytest.raises(VersionGoneError, match=r"version 1 .* is gone"):
        Versions(three_versions).read(1)
    with pytest.raises(UnknownVersionError, match="has no version 9: the newest is 3"):
        Versions(three_versions).read(9)


class OverwritingBucket(CountingStore):
    """An endpoint that ignores If-None-Match."""

    needs_probe = True

    def put_if_absent(self, key: str, body: bytes | Path) -> bool:
        self.delete(key)
        return super().put_if_absent(key, body)


def test_nothing_is_published_to_an_endpoint_that_overwrites(local_store: Store, tmp_path: Path) -> None:
    base, path = random_base(tmp_path, local_store)
    bucket = OverwritingBucket(local_store)
    with pytest.raises(StoreError, match=r"ignores If-None-Match.*Nothing was published"):
        fuse_experts(cache_of(bucket, tmp_path), base, [random_expert(tmp_path, path, "a", seed=1)], mode=SIGNED)
    assert not [info.key for info in local_store.list("") if not info.key.startswith("bases/")]
