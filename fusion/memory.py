"""The memory of this process."""

from __future__ import annotations

import ctypes
import resource
import sys
from contextlib import suppress
from pathlib import Path

_STATUS = Path("/proc/self/status")


class PeakMemory:
    """Peak memory from the moment this object is created.

    Linux can report the peak since a given moment; elsewhere it is the peak since the process started.
    """

    def __init__(self) -> None:
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # resets the peak to what is resident now
        self._before = _read("VmRSS")

    def peak_bytes(self) -> int:
        """Peak resident memory of the process, bytes."""
        return _read("VmHWM")

    def extra_bytes(self) -> int:
        """How far the peak is above what was resident at the start, bytes."""
        return max(0, self.peak_bytes() - self._before)


def release_freed() -> None:
    """Give memory that was freed back to the system, which glibc may be told to keep. Does nothing without glibc."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _read(field: str) -> int:
    with suppress(OSError, StopIteration):
        return 1024 * int(next(line for line in _STATUS.read_text().splitlines() if line.startswith(field)).split()[1])
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
