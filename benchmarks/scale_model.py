"""Claim: how long a run of many tasks on many machines takes, and what limits it, follows from a few measured costs.

A discrete-event model: lanes start and take tasks, the driver looks twice a second, the fusion actor fuses in order and
publishes, test sets are measured. Its costs are read off real runs, those of one and of two machines and that of two
tasks on three, and set against all of them: four and eight tasks on three machines are predicted. Then it runs a
thousand tasks on a hundred machines, with what a version costs measured on an S3 server, and moves on to the next
bottleneck by taking the first away.

    make soak-machines                                                      or only tests/soak/test_scale.py, as root
    python -m benchmarks.scale_model --runs soak-results/machines.json
    python -m benchmarks.scale_model --runs FILE --task-s 600 --store s3://bucket/empty      your own

Two things are left out: machines that die, and a network that many machines share. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.synthetic import random_base, spectral_expert
from fusion.fuse import ExpertToFuse, fuse_experts
from fusion.store import open_store
from fusion.store.node_cache import NodeCache
from fusion.tensors import TensorFile
from fusion.versions.bases import put_base

_POLL_S = 0.5
_LARGEST_BATCH = 16
_SHAPES = {"visual.proj": (64, 64), "text.proj": (64, 32), "bias": (64,), "logit_scale": ()}
_SIZES = (1, 50, 200)
"""Numbers of tasks at which a version is timed."""


@dataclass(frozen=True)
class Costs:
    """Seconds, on a core that nobody shares.

    Attributes:
        driver_s: from the command to the start of lanes, without what each machine does for it.
        machine_s: what a machine does before lanes start: its look at store and data, in a process that starts for it.
        lane_s: a lane's start, up to its first task.
        task_s: one task on a lane: its data, steps, states and upload.
        actor_s: the fusion actor's start, with the first expert.
        fuse_s: one expert in the fusion actor, without the version.
        version_s, version_task_s: a version, and each task that it names.
        measure_s: a test set under one version; 0: nothing is measured.
        end_s: from the last version to the end of the command.
        beside: cores that a machine's other processes take while its lane works: Ray's own, the lane's controller, and
            what serves them. Of no account where machines do not share cores.
    """

    driver_s: float
    machine_s: float
    lane_s: float
    task_s: float
    actor_s: float
    fuse_s: float
    version_s: float
    version_task_s: float
    measure_s: float = 0.0
    end_s: float = 0.0
    beside: float = 0.0


@dataclass(frozen=True)
class Outcome:
    """A simulated run: when it ended, when the last task was trained and fused, and its versions."""

    seconds: float
    trained_s: float
    fused_s: float
    num_versions: int


def simulate(costs: Costs, num_tasks: int, num_lanes: int, *, cores: float = math.inf, batch: int = 1) -> Outcome:
    """One run. `cores` are shared by all lanes, as machines that are namespaces share those of one machine."""
    trained, actor_s = _train(costs, num_tasks, num_lanes, cores)
    fused_s, num_versions = _fuse(costs, trained, actor_s, batch)
    measured_s = num_tasks * num_versions * costs.measure_s / num_lanes
    return Outcome(fused_s + measured_s + costs.end_s, max(trained), fused_s, num_versions)


def _train(costs: Costs, num_tasks: int, num_lanes: int, cores: float) -> tuple[list[float], float]:
    """When each task is trained, and when the fusion actor, which the first of them starts, is ready.

    A lane that is free takes the next task. What works at the same time shares the cores alike.
    """
    work = {("lane", lane): costs.lane_s for lane in range(min(num_lanes, num_tasks))}
    waiting, trained, held = deque(range(num_tasks)), [0.0] * num_tasks, dict[tuple[str, int], int]()
    now, ready = costs.driver_s + costs.machine_s / min(1.0, cores / num_lanes), math.inf
    while work:
        wanted = sum(1.0 + costs.beside if kind == "lane" else 1.0 for kind, _ in work)
        rate = min(1.0, cores / wanted)
        job = min(work, key=lambda one: work[one])
        done = work.pop(job)
        now += done / rate
        work = {other: left - done for other, left in work.items()}
        if job[0] == "actor":
            ready = now
            continue
        if job in held:
            if not any(trained):
                work["actor", 0] = costs.actor_s
            trained[held.pop(job)] = now
        if waiting:
            held[job] = waiting.popleft()
            work[job] = costs.task_s
    return trained, ready


def _fuse(costs: Costs, trained: Sequence[float], actor_s: float, batch: int) -> tuple[float, int]:
    """When the last version is published, and how many there are. A task waits for all before it, and for the actor."""
    ready = deque[float]()
    latest = 0.0
    for when in trained:
        latest = max(latest, when)
        ready.append(math.ceil(latest / _POLL_S) * _POLL_S)
    free, held, versions = actor_s, 0, 0
    while ready:
        free = max(free, ready[0])
        taken = 0
        while ready and taken < batch and ready[0] <= free:
            ready.popleft()
            taken += 1
        held, versions = held + taken, versions + 1
        free += taken * costs.fuse_s + costs.version_s + held * costs.version_task_s
    return free, versions


def _read_off(runs: Sequence[dict[str, Any]], version: tuple[float, float], cores: float) -> Costs:
    """The costs of runs on one machine, whose lane has a core for itself, what two lanes do to each other, and what a
    third machine without a lane adds."""
    one, two = ([_marks(run) for run in runs if run["machines"] == number] for number in (1, 2))
    idle = [_marks(run) for run in runs if run["machines"] == 3 and run["tasks"] == 2]
    task_s = _task_time(one)
    slower = max(1.0, _task_time(two) / task_s)
    first_s, second_s, third_s = (_first_task(found) for found in (one, two, idle))
    lane_s = max(1.0, (second_s - first_s) / (slower - 1)) if slower > 1 else 1.0
    machine_s = max(0.0, (third_s - second_s) / (max(1.0, 3 / cores) - max(1.0, 2 / cores)))
    waits = [[marks["fused"][name] - when for name, when in marks["trained"].items()] for marks in one]
    ends = [run["seconds"] - max(_marks(run)["fused"].values()) for run in runs if run["machines"] == 1]
    fuse_s = max(0.0, statistics.median(wait for each in waits for wait in each[1:]) - version[0])
    return Costs(
        driver_s=max(0.0, first_s - lane_s - machine_s),
        machine_s=machine_s,
        lane_s=lane_s,
        task_s=task_s,
        actor_s=max(0.0, statistics.median(each[0] for each in waits) - fuse_s),
        fuse_s=fuse_s,
        version_s=version[0],
        version_task_s=version[1],
        end_s=statistics.median(ends),
        beside=max(0.0, slower * cores / 2 - 1),
    )


def _first_task(runs: Sequence[dict[str, dict[str, float]]]) -> float:
    return statistics.median(min(marks["training"].values()) for marks in runs)


def _task_time(runs: Sequence[dict[str, dict[str, float]]]) -> float:
    return statistics.median(
        when - marks["training"][name] for marks in runs for name, when in marks["trained"].items()
    )


def _marks(run: dict[str, Any]) -> dict[str, dict[str, float]]:
    """When each task began, was trained and was fused, in the order in which that happened."""
    words = {"training": " training", "trained": " trained in", "fused": " fused, version"}
    return {
        name: {line.split()[0]: when for when, line in run["events"] if word in line} for name, word in words.items()
    }


def _version_cost(url: str | None) -> tuple[float, float]:
    """What a version costs, and each task that it names: a line through a few sizes. Takes a minute."""
    with tempfile.TemporaryDirectory(prefix="condu-bench-") as name:
        folder = Path(name)
        store = open_store(url or (folder / "store").as_uri())
        random_base(folder / "base.safetensors", _SHAPES)
        base, theta = put_base(store, folder / "base.safetensors"), TensorFile(folder / "base.safetensors")
        points, held = [], 0
        for size in _SIZES:
            held = _fill(folder, store, base, theta, held, size)
            points.append((size, statistics.median(_publish(folder, store, base, theta, held + k) for k in range(3))))
            held += 3
    (x0, y0), *_, (x1, y1) = points
    slope = max(0.0, (y1 - y0) / (x1 - x0))
    return max(0.0, y0 - slope * x0), slope


def _fill(folder: Path, store: Any, base: Any, theta: TensorFile, held: int, size: int) -> int:
    for first in range(held, size, 50):
        experts = [_expert(folder, theta, k) for k in range(first, min(first + 50, size))]
        fuse_experts(NodeCache(store, folder / "cache"), base, experts, mode={"name": "lowrank"})
    return max(held, size)


def _publish(folder: Path, store: Any, base: Any, theta: TensorFile, number: int) -> float:
    """Seconds from a fused expert to its published version."""
    began = 0.0

    def on_stage(stage: str) -> None:
        nonlocal began
        began = time.perf_counter()

    expert = _expert(folder, theta, number)
    fuse_experts(NodeCache(store, folder / "cache"), base, [expert], mode={"name": "lowrank"}, on_stage=on_stage)
    return time.perf_counter() - began


def _expert(folder: Path, theta: TensorFile, number: int) -> ExpertToFuse:
    path = folder / f"{number}.safetensors"
    spectral_expert(path, theta, power=1.0, noise=0.05, seed=number)
    return ExpertToFuse(f"task-{number:04d}", path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True, help="what tests/soak/test_scale.py found")
    parser.add_argument("--cores", type=float, default=2.0, help="of the machine that the runs shared")
    parser.add_argument("--store", help="an empty store for what a version costs; default: a folder")
    parser.add_argument("--task-s", type=float, default=600.0, help="of a task in the large run")
    parser.add_argument("--fuse-s", type=float, default=2.0, help="of an expert in the large run")
    parser.add_argument("--tasks", type=int, default=1000)
    parser.add_argument("--machines", type=int, default=100)
    options = parser.parse_args()
    runs = [row for row in json.loads(options.runs.read_text()).values() if row["table"] == "scale"]
    version = _version_cost(options.store)
    costs = _read_off(runs, version, options.cores)
    print(f"costs {costs}")
    print(f"{'tasks':>6} {'machines':>9} {'measured_s':>11} {'model_s':>8} {'error':>7}")
    errors = []
    for run in sorted(runs, key=lambda run: (run["machines"], run["tasks"])):
        model = simulate(costs, run["tasks"], run["machines"], cores=options.cores)
        errors.append(model.seconds / run["seconds"] - 1)
        row = f"{run['tasks']:>6} {run['machines']:>9} {run['seconds']:>11.1f} {model.seconds:>8.1f}"
        print(f"{row} {errors[-1]:>+7.1%}")
    large = replace(costs, task_s=options.task_s, fuse_s=options.fuse_s)
    print(f"\n{options.tasks} tasks of {options.task_s:g} s on {options.machines} machines")
    print(f"{'what':<44} {'trained_s':>9} {'fused_s':>8} {'versions':>8} {'end_s':>8}")
    found = {}
    for name, changed, batch in _cases(large):
        out = simulate(changed, options.tasks, options.machines, batch=batch)
        found[name] = out.seconds
        print(f"{name:<44} {out.trained_s:>9.0f} {out.fused_s:>8.0f} {out.num_versions:>8} {out.seconds:>8.0f}")
    print(json.dumps({"benchmark": "scale_model", "worst_error": max(map(abs, errors), default=None), "end_s": found}))


def _cases(costs: Costs) -> list[tuple[str, Costs, int]]:
    short, slow = replace(costs, task_s=costs.task_s / 10), replace(costs, version_task_s=10 * costs.version_task_s)
    return [
        ("publish: each", costs, 1),
        ("publish: batch", costs, _LARGEST_BATCH),
        ("tasks ten times shorter, each", short, 1),
        ("tasks ten times shorter, batch", short, _LARGEST_BATCH),
        ("a store ten times slower, each", slow, 1),
        ("a store ten times slower, batch", slow, _LARGEST_BATCH),
        ("both, each", replace(short, version_task_s=slow.version_task_s), 1),
        ("both, batch", replace(short, version_task_s=slow.version_task_s), _LARGEST_BATCH),
    ]


if __name__ == "__main__":
    main()
