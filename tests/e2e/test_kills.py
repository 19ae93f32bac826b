"""Real processes killed with real signals: what was published stays, what was finished is not done again."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fusion.versions.experts import find_expert
from fusion.versions.history import Versions
from tests.e2e.project import FAST, Project
from tests.tiny import SHAPES, tiny_task

pytestmark = pytest.mark.ray


def wait_for(what: Callable[[], bool], process: subprocess.Popen[str], timeout_s: float = 120) -> None:
    deadline = time.monotonic() + timeout_s
    while not what():
        assert process.poll() is None, f"ended with {process.returncode}"
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


def kill_session(process: subprocess.Popen[str]) -> None:
    """SIGKILL the driver alone, then whatever of its Ray it left behind, by process group and session."""
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    subprocess.run(["pkill", "-KILL", "-s", str(process.pid)], check=False)  # the driver led its own session


def records(project: Project) -> dict[str, float]:
    return {info.key: info.modified for info in project.store.list("experts/") if info.key.count("/") == 1}


@pytest.fixture
def slow(tmp_path: Path) -> Project:
    """Three tasks on one lane, long enough to be killed in."""
    project = Project(tmp_path / "project")
    third = tiny_task(project.folder / "data" / "third", classes=SHAPES[:2], seed=6)
    tasks = [{"name": n, "data": d} for n, d in (*project.tasks.items(), ("third", third))]
    project.write_config(tasks=tasks, train={"lanes": 1, **FAST, "steps": 60}, unseen=None)
    return project


def test_a_killed_driver_is_started_again_and_trains_no_finished_task_twice(slow: Project) -> None:
    process = slow.start("run", "condu.yaml", "--no-evaluate")
    try:
        wait_for(lambda: len(records(slow)) >= 1, process)
        wait_for(lambda: any("/state/" in info.key for info in slow.store.list("experts/")), process)
    finally:
        kill_session(process)
    finished = records(slow)
    assert 1 <= len(finished) < 3, slow.log()
    newest = Versions(slow.store).newest_number()
    if newest:
        Versions(slow.store).read(newest)
    done = slow.condu("run", "condu.yaml", "--no-evaluate")
    assert done.returncode == 0, done.stdout + done.stderr
    after = records(slow)
    assert len(after) == 3
    assert {key: after[key] for key in finished} == finished, "a finished task's record was written once"
    assert "trained before" in done.stdout
    last = Versions(slow.store).newest()
    assert last is not None
    assert list(last.state.tasks) == ["colours", "shapes", "third"]
    assert last.version == 3, "each expert was fused once"
    for entry in last.state.tasks.values():
        assert slow.store.head(entry.record.key) is not None


@pytest.mark.soak  # `tests/fusion/test_actor.py` kills it at every step, without a run around it
def test_a_fusion_actor_killed_while_it_publishes_costs_nothing(slow: Project) -> None:
    process = slow.start("run", "condu.yaml", "--no-evaluate")
    killed = []
    try:
        wait_for(lambda: bool(actors(process)), process)
        wait_for(lambda: any(True for _ in slow.store.list("blobs/")), process)
        for pid in actors(process):
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)
        assert process.wait(240) == 0, slow.log()
    finally:
        subprocess.run(["pkill", "-KILL", "-s", str(process.pid)], check=False)
    assert killed
    last = Versions(slow.store).newest()
    assert last is not None
    assert last.version == 3
    assert list(last.state.tasks) == ["colours", "shapes", "third"]
    identities = [key.removeprefix("experts/").removesuffix(".json") for key in records(slow)]
    assert all(find_expert(slow.store, identity) for identity in identities)


def actors(process: subprocess.Popen[str]) -> list[int]:
    """Process ids of the session's fusion actors."""
    found = subprocess.run(
        ["pgrep", "-s", str(process.pid), "-f", "ray::FusionActor"], capture_output=True, text=True, check=False
    )
    return [int(pid) for pid in found.stdout.split()]
