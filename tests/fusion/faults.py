"""What tests of faults share: copies of a store, a version read in full, a flipped bit, and a store with a fault."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from fusion.decouple import decoupled_tensors, read_record
from fusion.store import ObjectInfo, Store
from fusion.store.node_cache import NodeCache
from fusion.versions.manifest import Manifest


def keys(store: Store, prefix: str = "") -> set[str]:
    return {info.key for info in store.list(prefix)}


def copy_store(source: Store, target: Store) -> None:
    """Copy every object under its own key: a version does not record where its store is."""
    for info in source.list(""):
        assert target.put_if_absent(info.key, source.get(info.key))


def read_whole(store: Store, folder: Path, manifest: Manifest) -> dict[str, dict[str, torch.Tensor]]:
    """Every tensor of every task of a version, each blob verified again. Raises what reading raises."""
    cache = NodeCache(store, folder / f"cache-{os.urandom(4).hex()}")
    whole = {}
    for task in manifest.state.tasks:
        record = read_record(cache, manifest, task)
        for ref in (record.prototypes, record.archive):
            if ref is not None:
                cache.path(ref)
        whole[task] = {name: tensor.clone() for name, tensor in decoupled_tensors(cache, manifest, task)}
    return whole


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def flip_a_bit(store: Store, key: str, where: float = 0.5) -> None:
    """Flip one bit of an object; `where` runs from 0 (first byte) to 1 (last byte). A second flip repairs it."""
    data = bytearray(store.get(key))
    data[round(where * (len(data) - 1))] ^= 1
    store.delete(key)
    assert store.put_if_absent(key, bytes(data))


def kill_this_process() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class StruckStore:
    """A store that calls `strike` once, just before one of its calls or just after it.

    Args:
        at: the call's number, from 1, or (method, prefix of the key) for the first such call. None: never.

    `calls` lists the calls as (method, key). A listing and a stream are one call each, and must be read to the end.
    """

    def __init__(
        self,
        store: Store,
        *,
        at: int | tuple[str, str] | None = None,
        after: bool = False,
        strike: Callable[[], None] = kill_this_process,
    ) -> None:
        self._store = store
        self._at = at
        self._after = after
        self._strike = strike
        self.num_strikes = 0
        self._lock = threading.Lock()
        self.calls: list[tuple[str, str]] = []
        self.url = store.url
        self.needs_probe = store.needs_probe

    @contextmanager
    def _call(self, method: str, key: str) -> Iterator[None]:
        with self._lock:
            self.calls.append((method, key))
            struck = self._is_due(method, key)
            self.num_strikes += struck
        if struck and not self._after:
            self._strike()
        yield
        if struck and self._after:
            self._strike()

    def _is_due(self, method: str, key: str) -> bool:
        if isinstance(self._at, tuple):
            return self.num_strikes == 0 and method == self._at[0] and key.startswith(self._at[1])
        return len(self.calls) == self._at

    @property
    def scratch(self) -> Path:
        with self._call("scratch", ""):
            return self._store.scratch

    def stale_scratch(self, untouched_s: float) -> Sequence[Path]:
        with self._call("stale_scratch", ""):
            return self._store.stale_scratch(untouched_s)

    def get(self, key: str, *, start: int = 0, stop: int | None = None) -> bytes:
        with self._call("get", key):
            return self._store.get(key, start=start, stop=stop)

    def stream(self, key: str, *, chunk_bytes: int = 8 << 20) -> Iterator[bytes]:
        with self._call("stream", key):
            yield from self._store.stream(key, chunk_bytes=chunk_bytes)

    def head(self, key: str) -> ObjectInfo | None:
        with self._call("head", key):
            return self._store.head(key)

    def put_if_absent(self, key: str, body: bytes | Path) -> bool:
        with self._call("put_if_absent", key):
            return self._store.put_if_absent(key, body)

    def list(self, prefix: str, *, start_after: str = "") -> Iterator[ObjectInfo]:
        with self._call("list", prefix):
            yield from self._store.list(prefix, start_after=start_after)

    def delete(self, key: str) -> None:
        with self._call("delete", key):
            self._store.delete(key)

    def local_path(self, key: str) -> Path | None:
        with self._call("local_path", key):
            return self._store.local_path(key)
