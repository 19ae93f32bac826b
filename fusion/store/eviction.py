"""Keeps the node cache below its limit: what was asked for longest ago goes first.

A copy's modification time says when it was last asked for. A process that asks holds the cache's lock, shared, while it
sets that time; the one that deletes holds it alone. So a copy is either seen as just used, or its reader finds it gone
and fetches it again. Files that are open or mapped stay readable after they are deleted.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

IN_USE_S = 600.0
"""A copy that was asked for so recently is never deleted: its reader may not have opened it yet."""

_ABANDONED_S = 3600.0
"""A download writes without a pause: one that has been still for so long was killed."""
_COPY = "[0-9a-f][0-9a-f]/*"
_UNFINISHED = "[0-9a-f][0-9a-f]/.*"


@dataclass(frozen=True)
class _Copy:
    path: Path
    bytes: int
    used: float


def touch(folder: Path, path: Path) -> bool:
    """Mark a copy as just used. False: there is none."""
    if not path.is_file():
        return False
    with _locked(folder, fcntl.LOCK_SH):
        try:
            os.utime(path)
        except FileNotFoundError:
            return False
        except PermissionError:  # another user's copy, in a cache that users share: its age is its owner's
            return path.is_file()
    return True


def evict(folder: Path, limit_bytes: int | None) -> int:
    """Delete copies until all together take at most `limit_bytes` (None: half of the disk). Returns the bytes freed.

    Copies in use are kept, even above the limit. Does nothing while another process does the same.
    """
    limit = shutil.disk_usage(folder).total // 2 if limit_bytes is None else limit_bytes
    if sum(copy.bytes for copy in _copies(folder, _COPY)) <= limit:
        return 0
    with _locked(folder, fcntl.LOCK_EX | fcntl.LOCK_NB) as alone:
        if not alone:
            return 0
        now, freed = time.time(), 0
        copies = sorted(_copies(folder, _COPY), key=lambda copy: copy.used)
        excess = sum(copy.bytes for copy in copies) - limit
        for copy in copies:
            if excess <= freed or now - copy.used < IN_USE_S:
                break
            copy.path.unlink(missing_ok=True)
            freed += copy.bytes
        for copy in _copies(folder, _UNFINISHED):
            if now - copy.used > _ABANDONED_S:
                copy.path.unlink(missing_ok=True)
        return freed


def _copies(folder: Path, pattern: str) -> Iterator[_Copy]:
    hidden = pattern == _UNFINISHED
    for path in folder.glob(pattern):
        if path.name.startswith(".") != hidden:
            continue
        try:
            found = path.stat()
        except OSError:  # deleted or renamed since the listing
            continue
        yield _Copy(path, found.st_size, found.st_mtime)


@contextmanager
def _locked(folder: Path, how: int) -> Iterator[bool]:
    """Hold the cache's lock for a block. False: it was not to be had at once, or this user can't lock here."""
    try:
        handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError:
        yield False
        return
    try:
        try:
            fcntl.flock(handle, how)
        except OSError:
            yield False
            return
        yield True
    finally:
        os.close(handle)
