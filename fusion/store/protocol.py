"""What condu needs from object storage: six calls that a local folder and S3 can both keep.

Objects are immutable. There is no overwrite: the only write is `put_if_absent`, and the one object that commits a
version (`versions/NNNNNNNN.json`) leans on nothing else. Keys are relative, `/`-separated, without `.` or `..` parts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True)
class ObjectInfo:
    """One stored object: its key, size in bytes, and time of writing (unix seconds, the store's clock)."""

    key: str
    bytes: int
    modified: float


class Store(Protocol):
    """Object storage under one root URL. Safe to share between threads; make one per process.

    Every call raises `StoreAccessError` when the store refuses (permission, credentials, missing bucket) and
    `StoreUnavailableError` when it does not answer after the retries; both name the URL and the key.
    """

    url: str
    """Root as the user wrote it, without a trailing slash: `file:///data/condu` or `s3://bucket/prefix`."""

    @property
    def scratch(self) -> Path:
        """Existing folder for temporary files that become objects. The local store links from it instead of copying."""
        ...

    def get(self, key: str, *, start: int = 0, stop: int | None = None) -> bytes:
        """Bytes [start, stop) of an object, or all. Raises `BlobNotFoundError`."""
        ...

    def stream(self, key: str, *, chunk_bytes: int = 8 << 20) -> Iterator[bytes]:
        """An object in chunks of at most `chunk_bytes`; memory stays at one chunk. Raises `BlobNotFoundError`."""
        ...

    def head(self, key: str) -> ObjectInfo | None:
        """Size and time of an object, or None where there is none."""
        ...

    def put_if_absent(self, key: str, body: bytes | Path) -> bool:
        """Write an object unless the key is taken. True: it is durably stored now. False: the key was taken.

        A `Path` is streamed, and must not change afterwards (the local store may hard-link it). Readers never see
        a half-written object. On S3 a False may be one's own lost success: who needs to know reads it back.
        """
        ...

    def list(self, prefix: str, *, start_after: str = "") -> Iterator[ObjectInfo]:
        """Objects whose key starts with `prefix` and sorts after `start_after`, in the order of their keys."""
        ...

    def delete(self, key: str) -> None:
        """Remove an object. No error where there is none."""
        ...

    def local_path(self, key: str) -> Path | None:
        """The object's own file where the store is a folder (to be memory-mapped, read-only), else None."""
        ...
