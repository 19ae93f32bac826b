"""Claim: training at the size of a cluster costs what the training costs, and little for what is around it.

- `replan_s`: a second run on 50,000 images that are indexed knows within 5 s that there is nothing to train.
  `replan_process_s`: the same with the start of Python and its libraries, which a run has behind it by then.
- `loader_gib`: a worker that trains on 10 GB of Parquet is at most 2 GiB larger than one with a handful of images.
- `lane_vs_plain`: a lane that saves a state every 15 steps trains at 0.95 of the speed of the plain loop, which saves
  none, or more.
- `makespan_ratio`: 20 unequal tasks on 2 lanes take the ideal time over 0.90, or less: half of all their seconds.
- `overhead_per_task_s`: a further small task costs less than 1 s beside its steps.

    python -m benchmarks.train_scale                                all, with 10 GB: 12 GB of disk
    python -m benchmarks.train_scale --gigabytes 1 --only loader    the first look at what changed

Each process starts from nothing, as a run does. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.train_data import PARQUET_SIDE, write_folders, write_parquet
from fusion.store import open_store
from fusion.store.address import StoreAddress
from fusion.store.blobs import BlobRef
from fusion.versions.bases import Base
from training.lanes.task_queue import TaskJob, TaskStatus
from training.malloc import MALLOC_ENVIRONMENT
from training.recipe import Recipe

PARTS = ("replan", "loader", "steady", "unequal", "small")
_INDEXED_IMAGES = 50_000
_STREAMED = Recipe(steps=60, batch_size=64, lr=1e-4, warmup_steps=5, augment="none")
_STEADY = Recipe(steps=60, batch_size=32, lr=1e-4, warmup_steps=5, augment="none", save_every_steps=1000)
_SAVED = replace(_STEADY, save_every_steps=15)
_SMALL = Recipe(steps=4, batch_size=8, lr=1e-4, warmup_steps=1, augment="none")
_NUM_UNEQUAL, _NUM_SMALL, _NUM_LANES = 20, 10, 2
_REPEAT = 3
_POLL_S = 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=10.0, help="of Parquet, for `loader_gib`")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--folder", type=Path, help="for data and stores; default: a temporary one")
    parser.add_argument("--worker", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(_WORKERS[options.worker[0]](*options.worker[1:])))
        return
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}", flush=True)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="condu-bench-", dir=options.folder) as name:
        for part in options.only:
            folder = Path(name) / part
            folder.mkdir()
            measured = _in_process("part", part, str(folder), str(options.gigabytes), as_lane=False)
            for what, number in measured.items():
                print(f"{what:<24} {number:>9.3f}", flush=True)
            found |= measured
    print(json.dumps({"benchmark": "train_scale", **{what: round(number, 3) for what, number in found.items()}}))


def _replan(folder: Path, _: float) -> dict[str, float]:
    num_test = _INDEXED_IMAGES // 10
    source = write_folders(folder / "data", num_train=_INDEXED_IMAGES - num_test, num_test=num_test)
    time.sleep(3)  # files that were just written are not trusted
    first = _in_process("plan", str(folder), source)
    start = time.perf_counter()
    second = _in_process("plan", str(folder), source)
    seconds = time.perf_counter() - start
    assert second["identity"] == first["identity"]
    assert second["state"] == "done", "the second run finds the expert"
    return {"plan_first_s": first["seconds"], "replan_s": second["seconds"], "replan_process_s": seconds}


def _plan(folder: str, source: str) -> dict[str, Any]:
    """Plan one task as a run does, then write its record, as if it had been trained."""
    from fusion.answers import clip  # noqa: F401  # what a run has loaded before it plans
    from fusion.versions.experts import ExpertRecord, put_expert
    from training.lanes.plan import plan_tasks

    address = StoreAddress((Path(folder) / "store").as_uri())
    base = _base(address)
    start = time.perf_counter()
    (status,) = plan_tasks(address, base, [TaskJob("task", source, _STEADY)]).statuses
    seconds = time.perf_counter() - start
    assert status.identity, status.reason
    nothing = BlobRef("none", "0" * 64, 0)
    put_expert(address.open(), ExpertRecord(status.identity, "task", ("a",), ("{}",), base.sha256, nothing))
    return {"seconds": seconds, "identity": status.identity, "state": status.state}


def _loader(folder: Path, gigabytes: float) -> dict[str, float]:
    large = write_parquet(folder / "large", num_bytes=round(gigabytes * 1e9))
    few = write_folders(folder / "few", num_train=64, num_test=8, side=PARQUET_SIDE)
    time.sleep(3)
    for source in (large, few):
        _in_process("index", str(folder), source)
    small, whole = (_in_process("train", str(folder), source, str(gigabytes)) for source in (few, large))
    return {
        "loader_gib": (whole["peak_bytes"] - small["peak_bytes"]) / 2**30,
        "worker_gib": whole["peak_bytes"] / 2**30,
        "streamed_images_per_s": whole["images_per_s"],
        "cached_images_per_s": small["images_per_s"],
    }


def _index(folder: str, source: str) -> dict[str, Any]:
    from training.data.task_data import Reading, load_task_data

    load_task_data("task", source, Reading(StoreAddress((Path(folder) / "store").as_uri())))
    return {}


def _train(folder: str, source: str, gigabytes: str) -> dict[str, Any]:
    """Train as a worker of a lane does: peak memory of the process, and images per second of its steps."""
    import torch

    from training.data import images
    from training.data.task_data import Reading, load_task_data
    from training.expert import train_expert

    torch.set_num_threads(1)
    images.KEPT_BYTES = min(images.KEPT_BYTES, round(float(gigabytes) * 5e8))  # less than 2 GB is read in blocks, too
    address = StoreAddress((Path(folder) / "store").as_uri())
    base, cache = _base(address), address.open_cache()
    data = load_task_data("task", source, Reading(address, verify=False))
    record = train_expert(cache.store, cache, base, data, _STREAMED, seed=0)
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = record.metrics["seconds"]
    return {"peak_bytes": peak, "images_per_s": _STREAMED.steps * _STREAMED.batch_size / seconds}


def _steady(folder: Path, _: float) -> dict[str, float]:
    """A lane beside the plain loop."""
    address, base, (source,) = _site(folder, 1)
    plain, lane = [], []
    with _session():
        for seed in range(_REPEAT):  # in turns, and the best of each: a busy machine slows both
            plain.append(_in_process("plain", str(folder), source)["seconds"])
            (done,), _seconds = _run(address, base, [TaskJob("steady", source, _SAVED, seed=seed)], 1)
            lane.append(_trained_s(address, done))
    return {"plain_s": min(plain), "lane_vs_plain": min(plain) / min(lane)}


def _unequal(folder: Path, _: float) -> dict[str, float]:
    """Many tasks on lanes."""
    address, base, sources = _site(folder, _NUM_UNEQUAL)
    jobs = [
        TaskJob(f"task-{number}", source, replace(_SMALL, steps=10 + 6 * (number * 7 % _NUM_UNEQUAL)))
        for number, source in enumerate(sources)
    ]
    with _session():
        done, seconds = _run(address, base, jobs, _NUM_LANES)
    ideal = max(sum(one.seconds for one in done) / _NUM_LANES, *(one.seconds for one in done))
    return {"makespan_s": seconds, "makespan_ratio": ideal / seconds}


def _small(folder: Path, _: float) -> dict[str, float]:
    """Small tasks, one after another in one lane."""
    address, base, sources = _site(folder, _NUM_SMALL)
    with _session():
        done, _seconds = _run(address, base, [TaskJob(Path(one).name, one, _SMALL) for one in sources], 1)
    beside = [one.seconds - _trained_s(address, one) for one in done[1:]]
    return {"overhead_per_task_s": sum(beside) / len(beside)}


def _site(folder: Path, num_tasks: int) -> tuple[StoreAddress, Base, list[str]]:
    """A store with the demo's base, and the sources of tasks."""
    address = StoreAddress((folder / "store").as_uri())
    names = [folder / f"data-{number}" for number in range(num_tasks)]
    sources = [write_folders(one, num_train=64, num_test=8, side=96, seed=n) for n, one in enumerate(names)]
    return address, _base(address), sources


def _session() -> AbstractContextManager[Any]:
    from cluster.session import RayOptions, ray_session

    return ray_session(RayOptions(num_cpus=max(4, os.cpu_count() or 1)))


def _plain(folder: str, source: str) -> dict[str, Any]:
    """The plain loop on the task that the lane will train."""
    import torch

    from training.data.task_data import load_task_data
    from training.expert import train_expert

    torch.set_num_threads(1)
    address = StoreAddress(Path(tempfile.mkdtemp(dir=folder)).as_uri())
    base, cache = _base(address), address.open_cache()
    record = train_expert(cache.store, cache, base, load_task_data("steady", source), _STEADY, seed=0)
    return {"seconds": record.metrics["seconds"]}


def _run(address: StoreAddress, base: Base, jobs: Sequence[TaskJob], num_lanes: int) -> tuple[list[TaskStatus], float]:
    """Train on lanes: the statuses, and the seconds from the first task's start to the last one's end, half a second
    more or less."""
    from training.lanes.capacity import LaneOptions
    from training.lanes.driver import run_lanes
    from training.lanes.plan import plan_tasks

    begun: list[float] = []
    seen = [0.0]

    def note(statuses: list[TaskStatus]) -> None:
        running = [status.seconds for status in statuses if status.state != "waiting"]
        if running and not begun:
            begun.append(time.perf_counter() - max(running))
        if not all(status.settled for status in statuses):
            seen[0] = time.perf_counter()

    done = run_lanes(plan_tasks(address, base, jobs), LaneOptions(lanes=num_lanes), note)
    assert all(status.state == "done" for status in done), [status.reason for status in done]
    return done, seen[0] + _POLL_S - begun[0]


def _trained_s(address: StoreAddress, status: TaskStatus) -> float:
    from fusion.versions.experts import find_expert

    record = find_expert(address.open(), status.identity)
    assert record is not None, "a task that is done has a record"
    return record.metrics["seconds"]


def _base(address: StoreAddress) -> Base:
    """The demo's base, in the store."""
    from fusion.versions.bases import put_base

    demo = Path(__file__).parents[1] / "demo" / "base"
    described = json.loads((demo / "condu-tiny.json").read_text())
    return put_base(open_store(address.url), demo / "condu-tiny.safetensors", architecture="condu-tiny", **described)


def _part(part: str, folder: str, gigabytes: str) -> dict[str, Any]:
    """One part; Ray is imported in one session of a process alone."""
    return _MEASURED[part](Path(folder), float(gigabytes))


def _in_process(worker: str, *arguments: str, as_lane: bool = True) -> dict[str, Any]:
    """Run one of `_WORKERS` in a process of its own; `as_lane`: with the settings of a lane's worker."""
    command = [sys.executable, "-m", "benchmarks.train_scale", "--worker", worker, *arguments]
    environment = {**os.environ, **MALLOC_ENVIRONMENT, "OMP_NUM_THREADS": "1"} if as_lane else None
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


_MEASURED = {"replan": _replan, "loader": _loader, "steady": _steady, "unequal": _unequal, "small": _small}
_WORKERS = {"part": _part, "plan": _plan, "index": _index, "train": _train, "plain": _plain}


if __name__ == "__main__":
    main()
