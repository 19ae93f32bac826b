"""Files on a local disk: replaced in one step, and errors that name the file and the next step."""

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
    errno.EFBIG: "the file would exceed the size limit: raise `ulimit -f`, or use another file system",
}
"""Advice for each way of running out of space."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns an `OSError` raised while writing `path` into `DiskError`. A store's own errors pass through unchanged."""
    try:
        yield
    except OSError as error:
        advice = FULL.get(error.errno or 0, "check the folder, and this user's permission to write there")
        raise DiskError(f"can't write {path} ({error.strerror or error}): {advice}") from error


@contextmanager
def replacing(path: Path, *, private: bool = False) -> Iterator[Path]:
    """A new, empty file beside `path`. It replaces `path` when the block ends, and is removed if the block fails.

    Readers see the old file or the complete new one. Nothing is fsynced: after a power cut either may be there.

    Args:
        private: only this user may read the file (0600); otherwise the umask decides.
    Raises: OSError.
    """
    temporary = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        os.close(os.open(temporary, flags, 0o600 if private else 0o666))
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
