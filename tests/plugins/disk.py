"""A small disk that a test can really fill: a tmpfs, mounted and unmounted here."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

PAGE_BYTES = 4096


class SmallDisk:
    """A file system of 8 MB at `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._filler = folder / "filler"

    @property
    def free_pages(self) -> int:
        found = os.statvfs(self.folder)
        return found.f_bavail * found.f_frsize // PAGE_BYTES

    def fill(self, *, leave_pages: int = 0) -> None:
        """Use up all but `leave_pages` pages of 4 KiB."""
        self.clear()
        with open(self._filler, "wb") as file:
            file.write(b"x" * PAGE_BYTES * (self.free_pages - leave_pages))
        assert self.free_pages == leave_pages

    def clear(self) -> None:
        """Free what `fill` took."""
        self._filler.unlink(missing_ok=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """Skips where this user may not mount; the test of `RLIMIT_FSIZE` in test_full_disk.py runs everywhere."""
    folder = tmp_path / "small-disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "condu-test", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"this user can't mount a tmpfs: {done.stderr.strip()}")
    try:
        yield SmallDisk(folder)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)  # a mapped file may still be open
