"""What a lane's trainer has to know in its controller. Imports little, for each controller is a process of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ray
from ray.train import UserCallback

from fusion.errors import ConduError
from fusion.store.address import StoreAddress
from fusion.versions.bases import Base
from training.lanes.task_queue import TaskJob

_LONGEST_LINE = 400


class LaneError(ConduError):
    """No lane could be started, or all gave up."""

    http_status = 503


@dataclass(frozen=True)
class LaneConfig:
    """What a worker needs to know: names and settings, no data and no weights."""

    lane: str
    queue: Any
    jobs: tuple[TaskJob, ...]
    base: Base
    address: StoreAddress
    num_threads: int
    num_loader_threads: int
    gpu_share: float


class CrashReporter(UserCallback):
    """Runs in the controller: tells the queue of dead workers, and ends a lane that dies of itself."""

    def __init__(self, queue: Any, lane: str) -> None:
        self._queue = queue
        self._lane = lane

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        error = "; ".join(f"worker {rank}: {one_line(error)}" for rank, error in sorted(worker_exceptions.items()))
        if ray.get(self._queue.crashed.remote(self._lane, error)):
            raise LaneError(f"lane {self._lane} gave up: {error}")


def one_line(error: BaseException) -> str:
    """What an error says, in one line: Ray wraps tracebacks and advice around it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    if "worker process has died" in lines[-1]:
        return "its process died (killed, for memory perhaps, or a crash in native code: see its log in Ray's session)"
    return lines[-1] if len(lines[-1]) <= _LONGEST_LINE else lines[-1][:_LONGEST_LINE] + " …"
