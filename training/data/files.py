"""Files of a data set that are not read yet: their size, what tells that one has changed, and any range of their bytes.

A local file and an object on S3 are the same to everything above. Nothing is kept: who reads twice, reads twice.
"""

from __future__ import annotations

import io
import os
import time
from typing import TYPE_CHECKING, Any, Protocol

from fusion.answers.images import FORMATS, SIGNATURE_BYTES, format_of

if TYPE_CHECKING:
    from fusion.store.s3_folder import S3Folder

_SETTLED_S = 2.0
"""A file that was written more recently may be written again within the same tick of its file system's clock."""


class File(Protocol):
    """One file. Reading raises `OSError` or `StoreError`.

    Attributes:
        size: in bytes.
        stamp: changes when its content does, as far as the file system or the bucket tells; '' if it can't be trusted.
        path: where it is on this node; None for an object of a bucket.
    """

    size: int

    @property
    def stamp(self) -> str: ...

    @property
    def path(self) -> str | None: ...

    def read(self, start: int = 0, stop: int | None = None) -> bytes:
        """Bytes [start, stop), or all. A range beyond the end is cut short."""
        ...


class LocalFile:
    """A file on this node, or on a file system that it mounts."""

    __slots__ = ("_modified_ns", "path", "size")

    def __init__(self, path: str, size: int, modified_ns: int) -> None:
        self.path = path
        self.size = size
        self._modified_ns = modified_ns

    @property
    def stamp(self) -> str:
        settled = abs(time.time_ns() - self._modified_ns) > _SETTLED_S * 1e9
        return f"{self.size}-{self._modified_ns}" if settled else ""

    def read(self, start: int = 0, stop: int | None = None) -> bytes:
        with open(self.path, "rb", buffering=0) as file:
            if start:
                file.seek(start)
            left = (os.fstat(file.fileno()).st_size if stop is None else stop) - start
            parts = []
            while left > 0 and (part := file.read(left)):
                parts.append(part)
                left -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)


class ObjectFile:
    """An object on S3."""

    __slots__ = ("_bucket", "_key", "size", "stamp")
    path = None

    def __init__(self, bucket: S3Folder, key: str, size: int, stamp: str) -> None:
        self._bucket = bucket
        self._key = key
        self.size = size
        self.stamp = stamp

    def read(self, start: int = 0, stop: int | None = None) -> bytes:
        return self._bucket.read(self._key, start=start, stop=stop)


def starts_like_an_image(file: File) -> bool:
    """Whether a file's first bytes are those of an accepted format. Reads half a kilobyte."""
    return format_of(file.read(0, SIGNATURE_BYTES)) in FORMATS


class FileStream(io.RawIOBase):
    """A file as a seekable stream, for parsers. Wrap it in `io.BufferedReader`: each read here is one request."""

    def __init__(self, file: File) -> None:
        self._file = file
        self._place = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        origin = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._file.size}[whence]
        self._place = max(0, origin + offset)
        return self._place

    def tell(self) -> int:
        return self._place

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        data = self._file.read(self._place, min(self._place + len(view), self._file.size))
        view[: len(data)] = data
        self._place += len(data)
        return len(data)
