"""SIGTERM, which is how clusters stop a process, ends `condu run` and `condu serve` as Ctrl-C does, at any moment."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable

import pytest

from tests.e2e.project import Project
from tests.e2e.test_kills import wait_for
from tests.serving.helpers import free_port

pytestmark = pytest.mark.ray


def session_is_open(project: Project) -> bool:
    return any((project.folder / "runtime").rglob("*.json"))


def stop_when(project: Project, process: subprocess.Popen[str], ready: Callable[[], bool]) -> int:
    """Send SIGTERM once `ready`, and return the exit code. Nothing of the session outlives it."""
    try:
        wait_for(ready, process)
        process.send_signal(signal.SIGTERM)
        code = process.wait(120)
        deadline = time.monotonic() + 20
        while left := subprocess.run(["pgrep", "-s", str(process.pid)], capture_output=True, text=True).stdout:
            assert time.monotonic() < deadline, left
            time.sleep(0.2)
        return code
    finally:
        subprocess.run(["pkill", "-KILL", "-s", str(process.pid)], check=False)  # it led a session of its own


@pytest.mark.parametrize("delay_s", [0.0, pytest.param(3.0, marks=pytest.mark.soak)])
def test_a_service_that_is_still_starting_ends_like_ctrl_c(finished: Project, delay_s: float) -> None:
    process = finished.start("serve", "condu.yaml", "--port", str(free_port()))

    def starting() -> bool:
        if not session_is_open(finished):
            return False
        time.sleep(delay_s)
        return True

    assert stop_when(finished, process, starting) == 130, finished.log()
    assert "serving" not in finished.log()
    assert "Traceback" not in finished.log()
    assert finished.log().rstrip().endswith("stopped")


def test_a_command_that_is_starting_ray_ends_like_ctrl_c(finished: Project) -> None:
    process = finished.start("serve", "condu.yaml", "--port", str(free_port()))

    def raylet_is_starting() -> bool:
        found = subprocess.run(["pgrep", "-s", str(process.pid), "gcs_server"], capture_output=True, text=True)
        return bool(found.stdout)

    assert stop_when(finished, process, raylet_is_starting) == 130, finished.log()
    assert "Traceback" not in finished.log()


def test_a_run_in_training_ends_like_ctrl_c_and_the_same_command_goes_on(project: Project) -> None:
    train = {"lanes": 1, "steps": 3000, "batch_size": 16, "warmup_steps": 2, "augment": "none", "save_every_steps": 5}
    project.write_config(train=train, unseen=None)
    process = project.start("run", "condu.yaml", "--no-evaluate")

    def trains() -> bool:
        return any("/state/" in info.key for info in project.store.list("experts/"))

    assert stop_when(project, process, trains) == 130, project.log()
    assert "Traceback" not in project.log()
    assert project.log().rstrip().endswith("stopped")
