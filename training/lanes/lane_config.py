"""What the workers of a lane have to know: names and settings, neither data nor weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fusion.store.address import StoreAddress
from fusion.versions.bases import Base
from training.lanes.task_queue import TaskJob


@dataclass(frozen=True)
class LaneConfig:
    """One lane's part of a run.

    Attributes:
        lane: its name, unique among all runs.
        queue: handle of the `TaskQueue` actor.
        jobs: all tasks to train; the queue hands out indices into them.
        base: what to fine-tune.
        address: of the store that has the base and receives the experts.
        num_threads: threads that a worker computes with.
        num_loader_threads: threads of a worker that decode images ahead.
        gpu_share: the part of a GPU's memory that a worker may use, up to 1.
    """

    lane: str
    queue: Any
    jobs: tuple[TaskJob, ...]
    base: Base
    address: StoreAddress
    num_threads: int
    num_loader_threads: int
    gpu_share: float


def run_lane(config: dict[str, Any]) -> None:
    """Ray Train's loop: `config["lane"]` is a `LaneConfig`. Ray's controller, which loads it too, imports no model."""
    from training.lanes.worker_loop import run_worker

    run_worker(config["lane"])
