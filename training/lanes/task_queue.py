"""The queue that lanes take their tasks from. It runs as an actor, and what it holds is soon in the store as well.

After a restart it finds finished tasks by their records and interrupted ones by their attempts; a lane that is still
training names its task when it next reports progress. Every method may run twice.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from fusion.store.address import StoreAddress
from fusion.versions.experts import ExpertRecord, find_expert, num_attempts
from training.data.task_data import Reading, TaskData, load_task_data
from training.recipe import Recipe

State = Literal["waiting", "training", "done", "failed"]


@dataclass(frozen=True)
class TaskJob:
    """One task to train: where its data lies, not the data. What is not None replaces what the source says."""

    name: str
    source: str
    recipe: Recipe = field(default_factory=Recipe)
    seed: int = 0
    classes: tuple[str, ...] | None = None
    templates: tuple[str, ...] | None = None
    aliases: Mapping[str, tuple[str, ...]] | None = None
    background: str | None = None
    image_column: str | None = None
    label_column: str | None = None

    def load(self, reading: Reading) -> TaskData:
        """Read the task's data, as `load_task_data` does. Raises `DataError`."""
        return load_task_data(
            self.name,
            self.source,
            reading,
            classes=self.classes,
            templates=self.templates,
            aliases=self.aliases,
            background=self.background,
            image_column=self.image_column,
            label_column=self.label_column,
            few_shot=self.recipe.few_shot,
            validation=self.recipe.early_stop is not None,
        )


@dataclass(frozen=True)
class PlannedTask:
    """A job whose data was read once: the identity that its expert will have, attempts left by earlier runs, the data's
    aliases, which are no part of the identity, and what was understood of its source."""

    job: TaskJob
    identity: str
    attempts_before: int = 0
    aliases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    understood: str = ""


@dataclass(frozen=True)
class TaskStatus:
    """Where one task stands.

    Attributes:
        identity: of its expert, whose record is in the store once `state` is `done`; empty if the data can't be read.
        step, steps: steps done, and in total.
        loss: of the last step that was reported.
        attempts: in this run.
        reason: why it failed.
        lane, worker: the lane that trains it or did so last, and host and process id of its rank 0.
        seconds: since a lane took it; its training time once it is done.
        aliases: other texts that mean the classes, for whoever fuses the task.
        understood: what was understood of its source, in one line.
    """

    name: str
    identity: str = ""
    state: State = "waiting"
    step: int = 0
    steps: int = 0
    loss: float | None = None
    attempts: int = 0
    reason: str | None = None
    lane: str | None = None
    worker: str | None = None
    seconds: float = 0.0
    aliases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    understood: str = ""

    @property
    def settled(self) -> bool:
        return self.state in ("done", "failed")


def steps_of(record: ExpertRecord, recipe: Recipe) -> int:
    """The steps after which an expert's training stopped."""
    return int(record.metrics.get("steps", recipe.steps))


class TaskQueue:
    """Hands tasks to lanes in the configured order, and knows how each stands.

    Args:
        address: of the store that keeps records and attempts.
        tasks: all of them.
        max_attempts: how often the training of a task may be cut short (a killed worker, a crash) before it has failed.
    """

    def __init__(self, address: StoreAddress, tasks: Sequence[PlannedTask], max_attempts: int) -> None:
        self._store = address.open()
        self._tasks = list(tasks)
        self._max_attempts = max_attempts
        self._statuses = [TaskStatus(task.job.name, task.identity, steps=task.job.recipe.steps) for task in self._tasks]
        self._taken: dict[int, float] = {}
        self._crash: dict[str, str] = {}
        self._crashes: dict[str, int] = {}
        self._handed: dict[int, int] = {}
        self._lanes: set[str] = set()
        self._unfit: set[str] = set()
        self._closed = False

    def take(self, lane: str, worker: str) -> int:
        """Index of the next task for a lane, or -1 if none is left. A restarted lane gets its own task back."""
        self._lanes.add(lane)
        own = self._task_of(lane)
        for index in ([] if own is None else [own]) + self._waiting():
            if self._closed:
                break
            task = self._tasks[index]
            if (record := find_expert(self._store, task.identity)) is not None:
                self.done(lane, index, steps_of(record, task.job.recipe))
                continue
            counted = num_attempts(self._store, task.identity) - task.attempts_before
            attempts = max(counted, self._handed.get(index, 0))  # a worker may die before it counts itself
            if attempts >= self._max_attempts:
                last = self._crash.get(lane, "its worker died")
                self.failed(lane, index, f"its training was cut short {attempts} times, the last time: {last}")
                continue
            self._handed[index] = attempts + 1
            self._taken.setdefault(index, time.monotonic())
            self._set(index, state="training", lane=lane, worker=worker, attempts=attempts + 1, reason=None)
            return index
        return -1

    def progress(self, lane: str, worker: str, index: int, step: int, loss: float) -> bool:
        """Note where a lane is. False: the run has ended, and the lane should stop."""
        if not self._statuses[index].settled:
            self._taken.setdefault(index, time.monotonic())
            self._set(index, state="training", lane=lane, worker=worker, step=step, loss=loss)
        return not self._closed

    def done(self, lane: str, index: int, step: int) -> None:
        """The task's record is in the store, after so many steps."""
        self._crashes.pop(lane, None)
        if self._statuses[index].state != "done":
            self._set(index, state="done", step=step, reason=None, seconds=self._seconds(index))

    def failed(self, lane: str, index: int, reason: str) -> None:
        """The task can't be trained; the lane continues with the next. The first reason is kept."""
        self._crashes.pop(lane, None)
        if not self._statuses[index].settled:
            self._set(index, state="failed", reason=reason, seconds=self._seconds(index))

    def unfit(self, lane: str) -> None:
        """A machine of the lane can't train, whatever the task: once its workers have died, the lane is given up."""
        self._unfit.add(lane)

    def crashed(self, lane: str, error: str) -> bool:
        """Note that a lane's workers died. True: give the lane up, because no single task is the cause.

        A task that kills its workers is set aside after `max_attempts`, which resets the count; so a longer run of
        crashes has another cause (a node without the packages, a store that is gone) that no restart will fix.
        """
        self._crash[lane] = error
        self._crashes[lane] = self._crashes.get(lane, 0) + 1
        give_up = self._closed or lane in self._unfit or self._crashes[lane] > self._max_attempts
        if give_up and (own := self._task_of(lane)) is not None:
            self._set(own, state="waiting", lane=None, worker=None)  # another lane may have more luck
        return give_up

    def close(self) -> None:
        """Hand out no more tasks, and make lanes stop when they next report progress."""
        self._closed = True

    def is_closed(self) -> bool:
        """Whether the run has ended."""
        return self._closed

    def statuses(self) -> list[TaskStatus]:
        """All tasks in the configured order."""
        return [
            replace(status, seconds=self._seconds(index)) if status.state == "training" else status
            for index, status in enumerate(self._statuses)
        ]

    def lanes_seen(self) -> set[str]:
        """Lanes that have ever asked for a task: the others wait for resources."""
        return set(self._lanes)

    def _task_of(self, lane: str) -> int | None:
        for index, status in enumerate(self._statuses):
            if status.state == "training" and status.lane == lane:
                return index
        return None

    def _waiting(self) -> list[int]:
        return [index for index, status in enumerate(self._statuses) if status.state == "waiting"]

    def _seconds(self, index: int) -> float:
        return time.monotonic() - self._taken[index] if index in self._taken else 0.0

    def _set(self, index: int, **changes: object) -> None:
        self._statuses[index] = replace(self._statuses[index], **changes)  # type: ignore[arg-type]
