"""Files on a local disk: replaced in one step, and errors that name the file and the next step."""

from __future__ import annotations

import atexit
import errno
import fcntl
import os
import secrets
import shutil
import tempfile
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


def replace_file(path: Path, content: bytes) -> None:
    """Write a file in one step, as `replacing` does. Raises OSError."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


_OWNER = ".owner"


def scratch_folder(prefix: str) -> Path:
    """A new folder for temporary files of this process, removed when it ends.

    What killed processes of this user left under the same prefix is removed too. Each folder holds a file that its
    process has locked for as long as it lives, so that only the dead lose theirs, whatever container they ran in.

    Raises: OSError.
    """
    place = Path(tempfile.gettempdir())
    for left in place.glob(f"{prefix}*"):
        _remove_abandoned(left)
    folder = Path(tempfile.mkdtemp(prefix=prefix))
    owner = os.open(folder / f"{_OWNER}-new", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(owner, fcntl.LOCK_EX)
    (folder / f"{_OWNER}-new").rename(folder / _OWNER)  # now that it is locked: an unlocked owner is a dead one
    pid = os.getpid()

    def remove() -> None:
        if os.getpid() == pid:  # a forked child inherits the registration, not the folder
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    return folder


def _remove_abandoned(folder: Path) -> None:
    try:
        owner = os.open(folder / _OWNER, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:  # just being made, or another user's
        return
    try:
        fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    except OSError:  # its process lives
        pass
    finally:
        os.close(owner)
