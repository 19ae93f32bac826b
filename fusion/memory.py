"""How much memory a piece of work took at its peak."""

from __future__ import annotations

import resource
import sys
from contextlib import suppress
from pathlib import Path

_STATUS = Path("/proc/self/status")


class PeakMemory:
    """Counts from where it is made.

    Linux tells the peak since a moment; elsewhere it is the process's peak since its start, and `extra_bytes` counts
    what the process grew by.
    """

    def __init__(self) -> None:
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # resets the peak to what is resident now
        self._before = _read("VmRSS")

    def peak_bytes(self) -> int:
        """Resident memory of the process at its highest, bytes."""
        return _read("VmHWM")

    def extra_bytes(self) -> int:
        """What it grew by at its highest, bytes."""
        return max(0, self.peak_bytes() - self._before)


def _read(field: str) -> int:
    with suppress(OSError, StopIteration):
        return 1024 * int(next(line for line in _STATUS.read_text().splitlines() if line.startswith(field)).split()[1])
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
