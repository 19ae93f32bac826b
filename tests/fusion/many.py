"""Stores with very many tasks or versions, built fast: what differs is real, what is alike is shared."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from fusion.decouple import read_record
from fusion.store import Store
from fusion.store.blobs import BlobRef, new_nonce, put_json
from fusion.versions.history import Versions, manifest_key
from fusion.versions.manifest import Manifest, Parent
from fusion.versions.publish import Draft, publish
from tests.fusion.vectors import cache_of, publish_each


def many_tasks(store: Store, folder: Path, count: int) -> None:
    """Publish two versions: one real task, then that task and `count - 1` more with records of their own.

    They share one trigger, so the store is small and real: every task decouples.
    """
    first = publish_each(folder, store, ["t0000"])[0]
    record, entry = read_record(cache_of(store, folder), first, "t0000"), first.state.tasks["t0000"]
    names = [f"t{i:04d}" for i in range(1, count)]
    written: list[BlobRef] = []

    def build(parent: Manifest | None, nonce: str) -> Draft:
        assert parent is not None
        with ThreadPoolExecutor(16) as pool:
            refs = list(pool.map(lambda n: put_json(store, replace(record, task=n).to_json(), nonce=nonce), names))
        written[:] = refs
        tasks = {
            name: replace(entry, record=ref, session=2 + i)
            for i, (name, ref) in enumerate(zip(names, refs, strict=True))
        }
        state = replace(parent.state, session=count, tasks={**parent.state.tasks, **tasks})
        return Draft(parent.base, dict(parent.mode), state)

    publish(Versions(store), build, written=lambda: written, created={"kind": "fuse", "why": "many"})


def many_versions(store: Store, folder: Path, count: int) -> None:
    """Publish one real version, and write `count - 1` more manifests with the same state on top of it."""
    manifests = publish_each(folder, store, ["a"])
    for number in range(2, count + 1):
        parent = Parent(number - 1, manifests[-1].sha256)
        manifests.append(replace(manifests[-1], version=number, parent=parent, nonce=new_nonce()).sealed())
    with ThreadPoolExecutor(16) as pool:
        for _ in pool.map(lambda m: store.put_if_absent(manifest_key(m.version), m.to_bytes()), manifests[1:]):
            pass
