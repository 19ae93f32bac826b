"""The driver of a run: starts lanes, a few Ray Train trainers that share many tasks, and watches them.

Starting a trainer costs 7-15 s and 1.6 GB, so each one trains many tasks. A lane is one `TorchTrainer`, driven by a
thread here, whose workers take tasks from a queue actor until it is empty. Everything that counts (records, states,
attempts) is in the store: Ray Train restarts a killed worker, which resumes from the last state; a killed driver is
started again and finds what is done.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from fusion.actor_names import NAMESPACE
from fusion.disk import scratch_folder
from fusion.errors import BlobNotFoundError
from fusion.store import Store
from fusion.store.address import StoreAddress
from fusion.versions.experts import find_expert
from training.lanes.capacity import LaneOptions, Node, lanes_that_fit
from training.lanes.crashes import CrashReporter, LaneError, one_line
from training.lanes.lane_config import LaneConfig, run_lane
from training.lanes.plan import Plan
from training.lanes.run_end import WIND_DOWN_S, EndsWithTheRun
from training.lanes.status_query import queue_prefix
from training.lanes.task_queue import PlannedTask, TaskQueue, TaskStatus
from training.malloc import MALLOC_ENVIRONMENT

logger = logging.getLogger(__name__)

_POLL_S = 0.5
_KILL_S = 15.0
_CLEAN_UP_S = 20.0
_TRAIN_SETTINGS = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # default 2 s: most of a lane's start-up is waiting for this poll
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "120",  # default 600 s: longer than most trainings
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "300",  # default 60 s: short where several lanes start on few cores
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}


def run_lanes(
    plan: Plan,
    options: LaneOptions | None = None,
    on_status: Callable[[list[TaskStatus]], None] | None = None,
    *,
    reserved: Mapping[str, float] | None = None,
) -> list[TaskStatus]:
    """Train all tasks that have no expert yet, in parallel. Needs `ray.init` unless there is nothing to train.

    Args:
        plan: the tasks.
        options: lanes and their resources.
        on_status: called about twice a second, and once at the end, with all tasks in the plan's order. A task that
            is `done` has its record in the store (`find_expert(store, status.identity)`), so fusing can start.
        reserved: what the caller's own actor holds of the cluster: `auto` does not count it.
    Returns:
        The last statuses, each `done` or `failed`.
    Raises:
        ConfigError: a lane demands more than the cluster has.
        BlobNotFoundError: the store does not have the base.
        LaneError: no lane ran within `startup_timeout_s`.
    """
    options = options or LaneOptions()
    report = on_status or (lambda _: None)
    address, base, planned = plan.address, plan.base, plan.to_train
    statuses = list(plan.statuses)
    report(list(statuses))
    if not planned:
        return statuses
    store = address.open()
    if store.head(base.weights.key) is None:
        raise BlobNotFoundError(f"{address.url} has no base {base.sha256[:12]}… to train from: put it there first")
    num_lanes = lanes_that_fit(options, cluster_nodes(), ray.available_resources(), len(planned), reserved=reserved)
    queue = _start_queue(address, list(planned.values()), options)
    lanes = _Lanes(queue, num_lanes, options, plan)

    def merged() -> list[TaskStatus]:
        for index, status in zip(planned, ray.get(queue.statuses.remote()), strict=True):
            statuses[index] = replace(status, aliases=planned[index].aliases, understood=planned[index].understood)
        return list(statuses)

    try:
        _watch(lanes, queue, options, merged, report)
    finally:
        lanes.close()
    final = [_settled(store, status, lanes.errors) for status in merged()]
    report(final)
    return final


def _settled(store: Store, status: TaskStatus, errors: Sequence[str]) -> TaskStatus:
    """What became of a task, now that no lane is left. The store knows those that the queue forgot with its machine."""
    if status.settled:
        return status
    if status.identity and find_expert(store, status.identity) is not None:
        return replace(status, state="done", step=status.steps)
    reason = "; ".join(errors) or "its lane ended"
    return TaskStatus(status.name, status.identity, "failed", status.step, status.steps, reason=reason)


class _Lanes:
    """The running lanes, each a thread that waits for its `fit()`."""

    def __init__(
        self,
        queue: Any,
        num_lanes: int,
        options: LaneOptions,
        plan: Plan,
    ) -> None:
        self.errors: list[str] = []
        self._closing = False
        self._queue = queue
        self._folder = scratch_folder("condu-lanes-")
        for name, value in _TRAIN_SETTINGS.items():
            os.environ.setdefault(name, value)
        if len(ray.nodes()) == 1:  # there is no other node to move to, and the watcher is one more process per lane
            os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        if options.quiet:
            logging.getLogger("ray.train").setLevel(logging.WARNING)
        nonce = secrets.token_hex(4)  # Ray Train resumes by name, so no two runs may share one
        self._threads = []
        for number in range(num_lanes):
            name = f"condu-{nonce}-lane-{number}"
            config = LaneConfig(
                lane=name,
                queue=queue,
                jobs=tuple(task.job for task in plan.to_train.values()),
                base=plan.base,
                address=plan.address,
                num_threads=max(1, int(options.num_cpus)),
                num_loader_threads=options.num_loader_threads,
                gpu_share=options.num_gpus or 1.0,
            )
            trainer = self._trainer(name, config, options)
            thread = threading.Thread(target=self._drive, args=(name, trainer), name=name, daemon=True)
            thread.start()
            self._threads.append(thread)
        logger.info("lanes started lanes=%d tasks=%d workers=%d", num_lanes, len(plan.to_train), options.workers)

    def alive(self) -> bool:
        return any(thread.is_alive() for thread in self._threads)

    def close(self) -> None:
        """Let lanes end, and end those that don't: they wait for resources, perhaps of a machine that is gone."""
        self._closing = True
        deadline = time.monotonic() + WIND_DOWN_S + _KILL_S
        for thread in self._threads:
            while thread.is_alive() and time.monotonic() < deadline:
                ray.get(self._queue.close.remote())  # again: a queue that lost its machine has forgotten it
                thread.join(_POLL_S)
        _remove_everywhere(self._folder)

    def _trainer(self, name: str, config: LaneConfig, options: LaneOptions) -> TorchTrainer:
        return TorchTrainer(
            run_lane,
            train_loop_config={"lane": config},
            scaling_config=ScalingConfig(  # type: ignore[call-arg]
                num_workers=options.workers,
                use_gpu=options.num_gpus > 0,
                resources_per_worker=options.demand(),
                accelerator_type=options.accelerator_type,
                label_selector=dict(options.labels) if options.labels else None,
            ),
            run_config=RunConfig(  # type: ignore[call-arg]
                name=name,
                storage_path=str(self._folder),
                failure_config=FailureConfig(max_failures=-1),  # attempts are counted per task, in the store
                callbacks=[CrashReporter(config.queue, name), EndsWithTheRun(config.queue, name)],  # type: ignore[list-item]
                worker_runtime_env={"env_vars": MALLOC_ENVIRONMENT},
                logging_config=LoggingConfig(log_level="WARNING" if options.quiet else "INFO"),
            ),
        )

    def _drive(self, name: str, trainer: TorchTrainer) -> None:
        try:
            trainer.fit()
        except Exception as error:  # a lane that gave up: its tasks go to the others, or fail with this reason
            if not self._closing:
                logger.warning("lane ended lane=%s: %s", name, one_line(error))
            self.errors.append(one_line(error))


def _watch(
    lanes: _Lanes,
    queue: Any,
    options: LaneOptions,
    merged: Callable[[], list[TaskStatus]],
    report: Callable[[list[TaskStatus]], None],
) -> None:
    """Report about twice a second until all tasks are settled or no lane is left."""
    started, seen = time.monotonic(), False
    while lanes.alive():
        statuses = merged()
        if all(status.settled for status in statuses):
            return
        report(statuses)
        seen = seen or bool(ray.get(queue.lanes_seen.remote()))
        if not seen and time.monotonic() - started > options.startup_timeout_s:
            available = ray.available_resources()
            free = {name: available.get(name, 0.0) for name in options.demand()}
            raise LaneError(
                f"no lane ran in {options.startup_timeout_s:.0f} s: it needs {options.workers} x {options.demand()}; "
                f"free in the cluster are {free}. Stop what holds the rest, or raise startup_timeout_s"
            )
        time.sleep(_POLL_S)


def _remove_everywhere(folder: Path) -> None:
    """Remove a folder here and on every node: Ray Train makes a trainer's folder wherever its workers run."""
    shutil.rmtree(folder, ignore_errors=True)
    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
    if len(nodes) > 1:
        remove: Any = ray.remote(num_cpus=0, max_retries=0)(shutil.rmtree)
        there = [NodeAffinitySchedulingStrategy(node, soft=False) for node in nodes]
        removed = [remove.options(scheduling_strategy=one).remote(str(folder), ignore_errors=True) for one in there]
        ray.wait(removed, num_returns=len(removed), timeout=_CLEAN_UP_S)


def _start_queue(address: StoreAddress, tasks: Sequence[PlannedTask], options: LaneOptions) -> Any:
    name = f"{queue_prefix(address.url)}{secrets.token_hex(4)}"  # a store may have several runs at once
    actor: Any = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(TaskQueue)
    named = actor.options(name=name, namespace=NAMESPACE)
    return named.remote(address, tasks, options.max_attempts)


def cluster_nodes() -> list[Node]:
    """The cluster's living nodes."""
    return [Node(node["Resources"], node.get("Labels") or {}) for node in ray.nodes() if node["Alive"]]
