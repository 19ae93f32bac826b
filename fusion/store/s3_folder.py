"""Other people's objects under a prefix, read only: whatever their keys look like.

A store shows only keys that it could have written itself (`fusion.store.keys`). A bucket that people fill holds others:
with backslashes, double slashes, or a part called `tmp`. Data is read through this class: none is lost silently.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from fusion.store.protocol import ObjectInfo
from fusion.store.s3 import PIECE_BYTES, S3Store


class S3Folder(S3Store):
    """Every object under `s3://bucket/prefix/`."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return partial(S3Folder, options=self.options), (self.url,)

    def objects(self) -> list[ObjectInfo]:
        """All objects, in the order of their keys, which are relative to the prefix."""
        return list(self._listed("", ""))

    def read(self, key: str, *, start: int = 0, stop: int | None = None) -> bytes:
        """Bytes [start, stop) of an object, or all. Raises the store's errors."""
        return b"".join(self._pieces(key, start, stop, PIECE_BYTES))

    def pieces(self, key: str) -> Iterator[bytes]:
        """An object in pieces of at most 1 MiB, for whoever may want to stop. Raises the store's errors."""
        return self._pieces(key, 0, None, PIECE_BYTES)

    def _shows(self, key: str) -> bool:
        return True

    def _name(self, key: str) -> str:
        return self._prefix + key
