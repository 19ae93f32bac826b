"""What becomes of a lane whose workers died. Imports little, because each lane's controller is a process of its own."""

from __future__ import annotations

from typing import Any

import ray
from ray.train import UserCallback

from fusion.errors import ConduError

_LONGEST_LINE = 400


class LaneError(ConduError):
    """No lane could be started, or all gave up."""

    http_status = 503


class CrashReporter(UserCallback):
    """Runs in the lane's controller: reports dead workers to the queue, and ends the lane if the queue gives it up."""

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
