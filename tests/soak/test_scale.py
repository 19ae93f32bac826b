"""Runs of two, four and eight tasks on one, two and three machines, second by second: what `benchmarks.scale_model` is
checked against.

The machines share the cores of this one, which the model knows. Each run starts from an empty store.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.project import FAST, Project
from tests.soak.machines import BUCKET, Machines
from tests.soak.results import Results
from tests.tiny import COLOURS, tiny_task

pytestmark = [pytest.mark.soak, pytest.mark.processes]

TASKS = (2, 4, 8)
_MARKS = (" training", " trained in", " fused, version")


@pytest.mark.parametrize("num_machines", [1, 2, 3])
def test_a_run_is_timed(num_machines: int, new_lab: Callable[[], Machines], results: Results, tmp_path: Path) -> None:
    lab = new_lab()
    project = Project(tmp_path / "project")
    tasks = [
        {"name": f"t{i}", "data": str(tiny_task(tmp_path / f"t{i}", classes=tuple(COLOURS), seed=i))}
        for i in range(max(TASKS))
    ]
    head = lab.add("head")
    head.ray_head(num_cpus=0)
    for number in range(num_machines):
        lab.add(f"w{number}").ray_worker(head, num_cpus=1)
    for num_tasks in TASKS:
        scenario = f"{num_tasks} tasks on {num_machines} machines"
        results.begin("scale", scenario)
        project.store_url = f"s3://{BUCKET}/scale-{num_tasks}"
        project.write_config(
            tasks=tasks[:num_tasks], unseen=None, ray={"address": "auto"}, fusion={"num_cpus": 0},
            train={**FAST, "lanes": num_machines, "steps": 400, "save_every_steps": 100},
        )  # fmt: skip
        log = lab.folder / f"run-{num_tasks}.log"
        began, events = time.monotonic(), list[tuple[float, str]]()
        process = head.start("condu", "run", project.config, "--no-evaluate", log=log)
        while process.poll() is None:
            events += _new(log, events, time.monotonic() - began)
            time.sleep(0.05)
        seconds = time.monotonic() - began
        assert process.returncode == 0, log.read_text()[-3000:]
        events += _new(log, events, seconds)
        assert sum(_MARKS[2] in line for _, line in events) == num_tasks
        results.add(
            "scale", scenario, tasks=num_tasks, machines=num_machines, seconds=seconds, events=events
        )  # fmt: skip


def _new(log: Path, known: list[tuple[float, str]], now: float) -> list[tuple[float, str]]:
    """Lines that were not there yet, with the time."""
    lines = [line for line in log.read_text().splitlines() if any(mark in line for mark in _MARKS)]
    return [(round(now, 2), line) for line in lines[len(known) :]]
