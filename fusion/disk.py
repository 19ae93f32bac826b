"""Writing to a local disk: files that are whole or not there, and an error for whoever can help when it takes no more.

That error says which folder can't be written, and what to do about it.
"""

from __future__ import annotations

import errno
import os
import secrets
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
    """Turn an `OSError` of writing `path` into `DiskError`. Errors of a store pass through: they are not `OSError`s."""
    try:
        yield
    except OSError as error:
        advice = FULL.get(error.errno or 0, "check the folder, and this user's permission to write there")
        raise DiskError(f"can't write {path} ({error.strerror or error}): {advice}") from error


@contextmanager
def replacing(path: Path, *, mode: int = 0o666) -> Iterator[Path]:
    """A new file that takes the place of `path` in one step: readers see the old file or the new one, never a part.

    Yields an empty temporary file in the same folder, for the block to fill. When the block raises, that file is
    removed and `path` stays as it was. Nothing is synced: a power cut can lose the new file's content.

    Args:
        mode: permissions of the new file, less the umask.
    Raises: OSError.
    """
    temporary = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
    os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode))
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def replace_file(path: Path, content: bytes) -> None:
    """Write a file in one step, as `replacing` does. Raises OSError."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)
