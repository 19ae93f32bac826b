"""Memory that was freed goes back to the system when it is asked for."""

from __future__ import annotations

import os
import subprocess
import sys

_SCRIPT = """
import numpy as np
from pathlib import Path
from fusion.memory import release_freed

def resident_mb():
    line = next(one for one in Path("/proc/self/status").read_text().splitlines() if one.startswith("VmRSS"))
    return int(line.split()[1]) >> 10

blocks = [np.ones(1 << 17) for _ in range(200)]
kept = blocks[::20]
full = resident_mb()
del blocks
before = resident_mb()
release_freed()
print(full - before, before - resident_mb())
"""


def test_what_glibc_was_told_to_keep_is_released() -> None:
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "1073741824", "MALLOC_TRIM_THRESHOLD_": "4294967296"}
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT], env=environment, capture_output=True, text=True, check=True, timeout=120
    )
    by_itself, released = map(int, done.stdout.split())
    assert by_itself < 20
    assert released > 150  # of 200 MB
