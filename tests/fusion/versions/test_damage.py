"""One flipped bit in any object of a store: every reader finds and names it, and nothing is published on top of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fusion.answers.view import ViewLoader
from fusion.decouple import decoupled_tensors, read_record
from fusion.errors import DamagedBlobError
from fusion.fuse import ExpertToFuse, fuse_experts
from fusion.store import Store
from fusion.store.node_cache import NodeCache
from fusion.tensors import write_tensors
from fusion.versions.bases import get_base
from fusion.versions.experts import ExpertRecord, find_expert, put_expert, put_expert_file
from fusion.versions.history import Versions, manifest_key
from fusion.versions.manifest import Manifest
from tests.fusion.faults import flip_a_bit, keys, read_whole, same
from tests.fusion.vectors import random_base, random_expert

SIGNED: dict[str, Any] = {"name": "signed", "bits": 2}
ITERATIVE: dict[str, Any] = {"name": "iterative"}
JOINT: dict[str, Any] = {"name": "joint"}
PLACES = (0.0, 0.5, 1.0)  # first byte, middle, last byte


class Published:
    """A store of one task with prototypes, in one mode, and an expert that is not fused yet."""

    def __init__(self, store: Store, folder: Path, mode: dict[str, Any]) -> None:
        self.store, self.folder, self.mode = store, folder, mode
        self.base, path = random_base(folder, store)
        self.next = random_expert(folder, path, "next", seed=2)
        write_tensors(folder / "prototypes.safetensors", {"prototypes": torch.eye(3)})
        prototypes = put_expert_file(store, "made-by-hand", folder / "prototypes.safetensors", name="prototypes")
        weights = random_expert(folder, path, "first", seed=1).weights
        first = ExpertToFuse("first", weights, ("a", "b", "c"), ("{}.",), prototypes)
        self.manifest = fuse_experts(self.cache(), self.base, [first], mode=mode).manifest
        self.record = read_record(self.cache(), self.manifest, "first")

    def cache(self) -> NodeCache:
        """A node that has read nothing yet."""
        self._nodes = getattr(self, "_nodes", 0) + 1
        return NodeCache(self.store, self.folder / f"node-{self._nodes}")

    def key(self, what: str) -> str:
        state = self.manifest.state
        found = {
            "tau": state.shared.get("unified"),
            "last_flip": state.shared.get("last_flip"),
            "profile": state.shared.get("profile/1"),
            "record": state.tasks["first"].record,
            "trigger": self.record.trigger,
            "prototypes": self.record.prototypes,
            "archive": self.record.archive,
            "base": self.manifest.base.weights,
        }[what]
        assert found is not None, f"mode {self.mode} has no {what}"
        return found.key

    def decouple(self, cache: NodeCache) -> None:
        dict(decoupled_tensors(cache, self.manifest, "first"))

    def fuse(self, cache: NodeCache) -> Manifest:
        return fuse_experts(cache, self.base, [self.next], mode=self.mode).manifest

    def route(self, cache: NodeCache) -> None:
        ViewLoader(cache).load(self.manifest)


@pytest.mark.parametrize(
    ("what", "mode", "read"),
    [
        ("tau", ITERATIVE, Published.decouple),
        ("last_flip", ITERATIVE, Published.decouple),
        ("profile", SIGNED, Published.decouple),
        ("trigger", SIGNED, Published.decouple),
        ("record", SIGNED, Published.decouple),
        ("base", SIGNED, Published.decouple),
        ("prototypes", SIGNED, Published.route),
        ("archive", JOINT, Published.fuse),
        ("tau", ITERATIVE, Published.fuse),
        ("last_flip", ITERATIVE, Published.fuse),
        ("trigger", ITERATIVE, Published.fuse),
        ("profile", SIGNED, Published.fuse),
        ("base", SIGNED, Published.fuse),
    ],
    ids=lambda value: value if isinstance(value, str) else getattr(value, "__name__", "") or value["name"],
)
def test_a_flipped_bit_in_any_blob_is_found_and_named(
    what: str,
    mode: dict[str, Any],
    read: Callable[[Published, NodeCache], object],
    any_store: Store,
    tmp_path: Path,
) -> None:
    published = Published(any_store, tmp_path, mode)
    if what == "profile" and read is Published.fuse:  # the second task opens a profile of its own, the third reads it
        published.manifest = published.fuse(published.cache())
        published.next = random_expert(tmp_path, tmp_path / "base-0.safetensors", "third", seed=3)
        key = published.manifest.state.shared[published.manifest.state.reads[0]].key
    else:
        key = published.key(what)
    newest = published.manifest.version
    for place in PLACES:
        flip_a_bit(any_store, key, place)
        before = keys(any_store, "blobs/")
        with pytest.raises(DamagedBlobError, match=key) as caught:
            read(published, published.cache())
        assert any_store.url in str(caught.value)
        assert "backup" in str(caught.value)
        assert Versions(any_store).newest_number() == newest
        assert keys(any_store, "blobs/") == before
        flip_a_bit(any_store, key, place)  # restored from a backup, as the message says
    read(published, published.cache())


@pytest.mark.parametrize("place", [*PLACES, 0.1, 0.9])
def test_nothing_is_published_on_top_of_a_damaged_manifest(place: float, any_store: Store, tmp_path: Path) -> None:
    published = Published(any_store, tmp_path, SIGNED)
    key = manifest_key(1)
    flip_a_bit(any_store, key, place)
    before = keys(any_store)
    with pytest.raises(DamagedBlobError, match=f"{any_store.url}/{key}"):
        published.fuse(published.cache())
    assert keys(any_store) == before
    flip_a_bit(any_store, key, place)
    assert published.fuse(published.cache()).version == 2


def test_a_reader_keeps_its_version_while_a_newer_one_is_damaged(any_store: Store, tmp_path: Path) -> None:
    published = Published(any_store, tmp_path, ITERATIVE)
    reader = published.cache()
    in_hand = {name: tensor.clone() for name, tensor in decoupled_tensors(reader, published.manifest, "first")}
    newer = published.fuse(published.cache())
    for key in (newer.state.shared.get("unified").key, newer.state.tasks["next"].record.key, manifest_key(2)):
        flip_a_bit(any_store, key)
        with pytest.raises(DamagedBlobError, match=key):
            read_whole(any_store, tmp_path, Versions(any_store).read(2))
        assert same(dict(decoupled_tensors(reader, published.manifest, "first")), in_hand)
        assert same(read_whole(any_store, tmp_path, Versions(any_store).read(1))["first"], in_hand)
        flip_a_bit(any_store, key)


@pytest.mark.parametrize("damage", ["first byte", "last byte", "not UTF-8", "another's"])
def test_a_damaged_description_of_a_base_or_an_expert_is_named(damage: str, any_store: Store, tmp_path: Path) -> None:
    """These two have no hash of their own: damage shows if they can't be read, or describe something else."""
    base, _ = random_base(tmp_path, any_store)
    record = ExpertRecord("one", "pets", ("a",), ("{}",), base.sha256, base.weights)
    put_expert(any_store, record)
    for key, read, name in (
        (f"bases/{base.sha256}.json", lambda: get_base(any_store, base.sha256), base.sha256),
        ("experts/one.json", lambda: find_expert(any_store, "one"), '"identity":"one'),
    ):
        body = any_store.get(key)
        any_store.delete(key)
        damaged = {
            "first byte": b"[" + body[1:],
            "last byte": body[:-1] + b"|",
            "not UTF-8": body.replace(b"null", b"\xff\xff\xff\xff"),
            "another's": body.replace(name.encode(), name.encode()[:-1] + b"0"),
        }[damage]
        assert damaged != body
        any_store.put_if_absent(key, damaged)
        with pytest.raises(DamagedBlobError, match=f"{any_store.url}/{key} is damaged.*backup"):
            read()
