"""Scratch folders: a killed process's is removed by the next one, a living process's is not."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.processes

_CODE = """
import sys, time
from fusion.disk import scratch_folder
print(scratch_folder("condu-scratch-"), flush=True)
if sys.argv[1:]: time.sleep(60)
"""


def start(tmp_path: Path, *arguments: str) -> tuple[subprocess.Popen[str], Path]:
    command = [sys.executable, "-c", _CODE, *arguments]
    process = subprocess.Popen(command, env={"TMPDIR": str(tmp_path)}, cwd=Path(__file__).parents[2],
                               stdout=subprocess.PIPE, text=True)  # fmt: skip
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_has_is_kept(tmp_path: Path) -> None:
    killed, left = start(tmp_path, "wait")
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert left.is_dir()
    alive, kept = start(tmp_path, "wait")
    try:
        last, gone = start(tmp_path)
        assert last.wait(60) == 0
        assert (left.exists(), kept.exists(), gone.exists()) == (False, True, False)
    finally:
        alive.kill()
        alive.wait()
