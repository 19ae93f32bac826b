"""A local disk that can't take a file, told to the person who can help: which folder, and what to do."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fusion.errors import DiskError

FULL = {
    errno.ENOSPC: "the disk is full: free space there, then run it again",
    errno.EDQUOT: "the quota is used up: raise it, or free space",
    errno.EFBIG: "a file may not grow that large there: raise `ulimit -f`, or take another file system",
}
"""Advice for each way of having no room."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns an `OSError` of writing `path` into `DiskError`. Errors of a store pass through: they are no `OSError`."""
    try:
        yield
    except OSError as error:
        advice = FULL.get(error.errno or 0, "check the folder, and this user's permission to write there")
        raise DiskError(f"can't write {path} ({error.strerror or error}): {advice}") from error
