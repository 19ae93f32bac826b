"""What every worker of a lane runs: take a task, train it, take the next. Stateless: any line may be its last."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch

from fusion.errors import BaseMismatchError, ConfigError, DataError, DiskError, StateDictError
from training.base_model import BaseModel
from training.data.task_data import Reading, TaskData
from training.expert import train_expert
from training.finetune import TrainingDivergedError
from training.lanes.lane_config import LaneConfig
from training.lanes.task_queue import TaskJob, steps_of
from training.worker_group import WorkerGroup

logger = logging.getLogger(__name__)

_PROGRESS_INTERVAL_S = 0.4


class LaneClosedError(RuntimeError):
    """The run that started this lane has ended."""


def run_worker(lane: LaneConfig) -> None:
    """Train tasks of the lane's queue until it is empty."""
    try:
        _train_tasks(lane)
    except DiskError:  # the next task, or another try, would meet the same disk: other lanes have other machines
        _call(lane, "unfit")
        raise


def _train_tasks(lane: LaneConfig) -> None:
    context = ray.train.get_context()
    device = ray.train.torch.get_device()
    torch.set_num_threads(lane.num_threads)
    if device.type == "cuda" and lane.gpu_share < 1:  # Ray books fractions without enforcing them
        torch.cuda.set_per_process_memory_fraction(lane.gpu_share, device)
    workers = WorkerGroup(context.get_world_size(), context.get_world_rank(), str(device))
    worker = f"{socket.gethostname()}:{os.getpid()}"
    cache = lane.address.open_cache()
    model = BaseModel(lane.base, cache, device=str(device))
    while True:
        index = workers.from_first(_call(lane, "take", worker) if workers.rank == 0 else 0)
        if index < 0:
            return
        job = lane.jobs[index]
        data = _load(lane, job, index, workers)
        if data is None:
            continue
        try:
            record = train_expert(
                cache.store,
                cache,
                lane.base,
                data,
                job.recipe,
                seed=job.seed,
                workers=workers,
                progress=_reporter(lane, worker, index, job) if workers.rank == 0 else None,
                model=model,
                num_loader_threads=lane.num_loader_threads,
            )
        except (TrainingDivergedError, BaseMismatchError, ConfigError, StateDictError) as error:  # in every rank alike
            _call(lane, "failed", index, str(error))
        except DataError as error:
            if workers.size > 1:  # the others wait for this rank: only a restart frees them, and attempts are counted
                raise
            _call(lane, "failed", index, str(error))
        else:
            _call(lane, "done", index, steps_of(record, job.recipe))


def _load(lane: LaneConfig, job: TaskJob, index: int, workers: WorkerGroup) -> TaskData | None:
    """The task's data, or None if any rank can't read it: it may lie on one node and not on another."""
    data = None
    try:
        data = job.load(Reading(lane.address, verify=False))  # the driver has verified it
    except DataError as error:
        _call(lane, "failed", index, f"on {socket.gethostname()}: {error}")
    return None if workers.any(data is None) else data


def _reporter(lane: LaneConfig, worker: str, index: int, job: TaskJob) -> Callable[[int, float], None]:
    last = 0.0

    def report(step: int, loss: float) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < _PROGRESS_INTERVAL_S and step < job.recipe.steps:
            return
        last = now
        if not _call(lane, "progress", worker, index, step, loss):
            raise LaneClosedError(f"lane {lane.lane} was closed")

    return report


def _call(lane: LaneConfig, method: str, *arguments: object) -> Any:
    return ray.get(getattr(lane.queue, method).remote(lane.lane, *arguments))
