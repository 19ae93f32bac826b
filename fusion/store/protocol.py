"""What condu needs from object storage: a few calls that a local folder and S3 can both honour.

Objects are immutable. Nothing is overwritten: the only write is `put_if_absent`, and the one object that commits a
version (`versions/NNNNNNNN.json`) depends on nothing else. Keys are relative, `/`-separated, without `.` or `..` parts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True)
class ObjectInfo:
    """One stored object: its key, its size in bytes, and when it was written (Unix seconds, by the store's clock).

    `etag` is what S3 calls the object's content, as listings have it; empty elsewhere.
    """

    key: str
    bytes: int
    modified: float
    etag: str = ""


class Store(Protocol):
    """Object storage under one root URL. Safe to share between threads; open one per process.

    Every call raises `StoreAccessError` when the store refuses it (permission, credentials, missing bucket) and
    `StoreUnavailableError` when the store does not answer after all retries; both name the URL and the key.
    """

    url: str
    """Root as the user wrote it, without a trailing slash: `file:///data/condu` or `s3://bucket/prefix`."""

    @property
    def needs_probe(self) -> bool:
        """Whether an endpoint might ignore the condition of `put_if_absent`.

        Such a store is probed before its first version is published (`fusion.store.probe`).
        """
        ...

    @property
    def scratch(self) -> Path:
        """An existing folder for temporary files that become objects. The local store links them in without a copy."""
        ...

    def stale_scratch(self, untouched_s: float) -> Sequence[Path]:
        """Files in a `scratch` shared by many processes that have not been written to for this many seconds.

        Their writers were killed. A store whose `scratch` belongs to one process has none.
        """
        ...

    def get(self, key: str, *, start: int = 0, stop: int | None = None) -> bytes:
        """Bytes [start, stop) of an object, or all. Raises `BlobNotFoundError`."""
        ...

    def stream(self, key: str, *, chunk_bytes: int = 8 << 20) -> Iterator[bytes]:
        """An object in chunks of at most `chunk_bytes`; memory stays at one chunk. Raises `BlobNotFoundError`."""
        ...

    def head(self, key: str) -> ObjectInfo | None:
        """Size and time of an object, or None if there is none."""
        ...

    def put_if_absent(self, key: str, body: bytes | Path) -> bool:
        """Write an object unless the key is taken. True: it is durably stored. False: the key was taken.

        A `Path` is streamed, and must not change afterwards (the local store may hard-link it). Readers never see a
        half-written object. On S3 a call whose first reply was lost may return False after its own success: a caller
        that needs to know reads the object back.
        """
        ...

    def list(self, prefix: str, *, start_after: str = "") -> Iterator[ObjectInfo]:
        """Objects whose keys start with `prefix` and sort after `start_after`, in the order of their keys."""
        ...

    def delete(self, key: str) -> None:
        """Remove an object. Does nothing if there is none."""
        ...

    def local_path(self, key: str) -> Path | None:
        """The object's own file if the store is a folder (to be memory-mapped, read-only), else None."""
        ...
