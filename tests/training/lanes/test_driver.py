"""Lanes on a real Ray, with real kills."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from ray.util import placement_group_table

from fusion.errors import BlobNotFoundError, ConfigError
from fusion.store import Store, open_store
from fusion.store.address import StoreAddress
from fusion.store.blobs import BlobRef
from fusion.store.node_cache import NodeCache
from fusion.versions.bases import Base
from fusion.versions.experts import ExpertRecord, find_expert, num_attempts, put_expert
from tests.tiny import SHAPES, tiny_base, tiny_task
from training.data.task_data import load_task_data
from training.expert import train_expert
from training.lanes.capacity import LaneOptions
from training.lanes.driver import _settled, run_lanes
from training.lanes.plan import plan_tasks
from training.lanes.task_queue import TaskJob, TaskStatus
from training.recipe import Recipe

QUICK = Recipe(steps=20, batch_size=8, lr=1e-3, warmup_steps=2, augment="none", flip=False)
LONG = Recipe(steps=600, batch_size=8, lr=1e-4, warmup_steps=2, augment="none", flip=False, save_every_steps=20)

pytestmark = pytest.mark.usefixtures("ray_session")


@dataclass
class Site:
    """A store with a base, and a folder for tasks."""

    store: Store
    base: Base
    folder: Path

    def job(self, name: str, recipe: Recipe = QUICK, *, seed: int = 0) -> TaskJob:
        return TaskJob(name, tiny_task(self.folder / name, classes=SHAPES, num_train=4, num_test=1, seed=seed), recipe)

    def run(
        self, jobs: list[TaskJob], options: LaneOptions, on_status: Callable[[list[TaskStatus]], None] | None = None
    ) -> dict[str, TaskStatus]:
        plan = plan_tasks(StoreAddress(self.store.url), self.base, jobs)
        return {status.name: status for status in run_lanes(plan, options, on_status)}


def site_in(folder: Path) -> Site:
    store = open_store(f"file://{folder}/store")
    return Site(store, tiny_base(store), folder)


def test_two_lanes_train_what_can_be_trained_and_a_second_run_trains_nothing(tmp_path: Path) -> None:
    site = site_in(tmp_path)
    diverging = Recipe(steps=20, lr=1e30, warmup_steps=2, augment="none")
    jobs = [site.job(name, seed=number) for number, name in enumerate(["one", "two", "three"])]
    jobs.insert(1, site.job("diverging", diverging))
    jobs.append(TaskJob("absent", str(tmp_path / "nowhere"), QUICK))
    seen: list[list[TaskStatus]] = []
    done = site.run(jobs, LaneOptions(lanes=2), seen.append)
    assert list(done) == ["one", "diverging", "two", "three", "absent"]
    assert {name: status.state for name, status in done.items()} == {
        "one": "done", "two": "done", "three": "done", "diverging": "failed", "absent": "failed"
    }  # fmt: skip
    assert "the loss is" in (done["diverging"].reason or "")
    assert "nowhere does not exist" in (done["absent"].reason or "")
    for name in ("one", "two", "three"):
        record = find_expert(site.store, done[name].identity)
        assert record is not None
        assert record.task == name
        assert num_attempts(site.store, record.identity) == 0
    assert seen[0][0].state == "waiting"
    assert seen[0][-1].state == "failed"  # broken data is known before anything starts

    files = {info.key for info in site.store.list("experts/")}
    again = site.run([job for job in jobs if job.name in ("one", "two", "three")], LaneOptions(lanes=2))
    assert {status.state for status in again.values()} == {"done"}
    assert {info.key for info in site.store.list("experts/")} == files


def test_a_killed_worker_resumes_and_a_task_that_kills_every_worker_fails_alone(tmp_path: Path) -> None:
    site = site_in(tmp_path)
    killed: dict[str, set[str]] = {"steady": set(), "poisoned": set()}

    def kill(statuses: list[TaskStatus]) -> None:
        for status in statuses:
            if status.state != "training" or status.name not in killed or status.step < 60 or not status.worker:
                continue
            if status.name == "steady" and killed["steady"]:
                continue
            if status.worker not in killed[status.name]:
                killed[status.name].add(status.worker)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(status.worker.rsplit(":", 1)[1]), signal.SIGKILL)

    jobs = [site.job("poisoned", LONG), site.job("steady", LONG, seed=1), site.job("quick", seed=2)]
    done = site.run(jobs, LaneOptions(lanes=2, max_attempts=2), kill)
    assert {name: status.state for name, status in done.items()} == {
        "poisoned": "failed", "steady": "done", "quick": "done"
    }  # fmt: skip
    assert {name: len(workers) for name, workers in killed.items()} == {"steady": 1, "poisoned": 2}
    assert "cut short 2 times, the last time: worker 0: its process died" in (done["poisoned"].reason or "")
    assert done["steady"].attempts == 2
    assert done["steady"].lane != done["poisoned"].lane, "two lanes train at once: each of these takes long"

    torch.set_num_threads(1)
    other = site_in(tmp_path / "undisturbed")
    data = load_task_data("steady", jobs[1].source)
    undisturbed = train_expert(other.store, NodeCache(other.store), other.base, data, LONG, seed=0)
    record = find_expert(site.store, done["steady"].identity)
    assert record is not None
    assert record.expert.sha256 == undisturbed.expert.sha256
    assert record.metrics["final_loss"] == undisturbed.metrics["final_loss"]


def test_a_lane_that_waits_for_resources_ends_with_the_run(tmp_path: Path) -> None:
    """Left in its thread it would use Ray after the session, for which Ray ends the process with exit code 1.

    What it waits for is asked for no longer: its run may go on, and would find no core free to measure on.
    """
    site = site_in(tmp_path)
    jobs = [site.job(name, seed=seed) for seed, name in enumerate(("one", "two", "three"))]
    done = site.run(jobs, LaneOptions(lanes=3, num_cpus=3, autoscaling=True))
    assert {status.state for status in done.values()} == {"done"}
    assert [thread.name for thread in threading.enumerate() if "-lane-" in thread.name] == []
    deadline = time.monotonic() + 20
    while held := [group for group in placement_group_table().values() if group["state"] != "REMOVED"]:
        assert time.monotonic() < deadline, held
        time.sleep(0.2)


def test_a_task_that_a_restarted_queue_knows_nothing_of_is_done_if_its_record_exists(local_store: Store) -> None:
    put_expert(local_store, ExpertRecord("id", "pets", ("a",), ("{}",), "base", BlobRef("x", "0" * 64, 1)))
    assert _settled(local_store, TaskStatus("pets", "id", steps=20), []).state == "done"
    lost = _settled(local_store, TaskStatus("cars", "other", steps=20), ["no room"])
    assert (lost.state, lost.reason) == ("failed", "no room")


def test_workers_of_one_lane_share_a_task(tmp_path: Path) -> None:
    site = site_in(tmp_path)
    done = site.run([site.job("one"), site.job("two", seed=1)], LaneOptions(lanes=1, workers=2))
    assert {status.state for status in done.values()} == {"done"}
    record = find_expert(site.store, done["two"].identity)
    assert record is not None
    torch.set_num_threads(1)
    other = site_in(tmp_path / "alone")
    data = load_task_data("two", str(tmp_path / "two"))
    alone = train_expert(other.store, NodeCache(other.store), other.base, data, QUICK, seed=0)
    assert record.metrics["final_loss"] == pytest.approx(alone.metrics["final_loss"], rel=1e-2)


def test_a_base_that_the_store_lacks_is_reported_before_anything_starts(tmp_path: Path) -> None:
    site = site_in(tmp_path)
    site.store.delete(site.base.weights.key)
    with pytest.raises(BlobNotFoundError, match="has no base"):
        site.run([site.job("one")], LaneOptions())


def test_a_demand_that_the_cluster_can_t_meet_is_refused_before_anything_starts(tmp_path: Path) -> None:
    site = site_in(tmp_path)
    with pytest.raises(ConfigError, match=r"needs 1 GPU per worker, the largest node of this cluster has 0 GPU"):
        site.run([site.job("one")], LaneOptions(num_gpus=1))
    with pytest.raises(ConfigError, match=r"needs 100 CPU per worker"):
        site.run([site.job("two")], LaneOptions(num_cpus=100))
