"""What a run counts while its lanes train, exported by Ray beside its own metrics.

`ray_condu_run_tasks` by `state`, and `ray_condu_run_stalled_seconds`: how long the task in training that has been still
for longest has made no step. A lane that waits for its resources has no task, so it does not count as stalled.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from typing import get_args

from training.lanes.task_queue import State, TaskStatus


class Stall:
    """Since when each task in training stands at its step."""

    def __init__(self) -> None:
        self._since: dict[str, tuple[tuple[int, int], float]] = {}

    def seconds(self, statuses: Sequence[TaskStatus], *, now: float) -> float:
        """Longest time that a task in training has been at the same step and attempt; 0 where none trains."""
        before, self._since = self._since, {}
        for status in statuses:
            if status.state == "training":
                at = (status.attempts, status.step)
                known = before.get(status.name)
                self._since[status.name] = known if known and known[0] == at else (at, now)
        return max((now - since for _, since in self._since.values()), default=0.0)


class RunMetrics:
    """Exports the statuses of a run. Needs a Ray session."""

    def __init__(self) -> None:
        from ray.util.metrics import Gauge

        self._stall = Stall()
        self._tasks = Gauge("condu_run_tasks", description="Tasks of a run by state.", tag_keys=("state",))
        self._stalled = Gauge(
            "condu_run_stalled_seconds", description="Longest time that a task in training has made no step."
        )

    def update(self, statuses: Sequence[TaskStatus]) -> None:
        counts = Counter(status.state for status in statuses)
        for state in get_args(State):
            self._tasks.set(counts[state], tags={"state": state})
        self._stalled.set(self._stall.seconds(statuses, now=time.monotonic()))
