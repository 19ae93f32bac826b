"""A store that counts its calls, so that what a command costs is a number and not a time."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from fusion.store import ObjectInfo, Store

_COUNTED = ("get", "stream", "head", "put_if_absent", "delete", "list")


class CountingStore:
    """`calls` counts its calls by name. Thread-safe."""

    def __init__(self, store: Store) -> None:
        self.calls: Counter[str] = Counter()
        self._store = store
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        return self._store.url

    @property
    def needs_probe(self) -> bool:
        return self._store.needs_probe

    @property
    def scratch(self) -> Path:
        return self._store.scratch

    def stale_scratch(self, untouched_s: float) -> Sequence[Path]:
        return self._store.stale_scratch(untouched_s)

    def local_path(self, key: str) -> Path | None:
        return self._store.local_path(key)

    def get(self, key: str, *, start: int = 0, stop: int | None = None) -> bytes:
        self._count("get")
        return self._store.get(key, start=start, stop=stop)

    def stream(self, key: str, *, chunk_bytes: int = 8 << 20) -> Iterator[bytes]:
        self._count("stream")
        return self._store.stream(key, chunk_bytes=chunk_bytes)

    def head(self, key: str) -> ObjectInfo | None:
        self._count("head")
        return self._store.head(key)

    def put_if_absent(self, key: str, body: bytes | Path) -> bool:
        self._count("put_if_absent")
        return self._store.put_if_absent(key, body)

    def list(self, prefix: str, *, start_after: str = "") -> Iterator[ObjectInfo]:
        self._count("list")
        return self._store.list(prefix, start_after=start_after)

    def delete(self, key: str) -> None:
        self._count("delete")
        self._store.delete(key)

    def taken(self) -> dict[str, int]:
        """The calls since the last `taken`."""
        with self._lock:
            calls = dict(self.calls)
            self.calls.clear()
        return calls

    def _count(self, name: str) -> None:
        with self._lock:
            self.calls[name] += 1
