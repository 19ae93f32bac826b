"""What a run has to train: its tasks' data, read where it is new, and which of their experts exist."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from fusion.errors import DataError
from fusion.store.address import StoreAddress
from fusion.versions.bases import Base
from fusion.versions.experts import find_expert, num_attempts
from training.data.scan import Scan
from training.data.sources import absolute_source
from training.data.task_data import Reading, with_checked_texts
from training.identity import identity_of
from training.lanes.task_queue import PlannedTask, TaskJob, TaskStatus, steps_of
from training.validation import validation_images


@dataclass(frozen=True)
class Plan:
    """The tasks of a run before any of them is trained.

    Attributes:
        address: of the store that has the base and receives the experts; the same for every working directory.
        base: what is fine-tuned.
        statuses: of every task, in the order in which they are wanted: `waiting`, `done` before, or `failed`.
        to_train: those that have to be trained, by index.
    """

    address: StoreAddress
    base: Base
    statuses: tuple[TaskStatus, ...]
    to_train: Mapping[int, PlannedTask]


def plan_tasks(
    address: StoreAddress, base: Base, jobs: Sequence[TaskJob], *, verify: bool = False, scan: Scan | None = None
) -> Plan:
    """Read what is new in every task's data.

    So broken data is reported before anything starts, and a run whose experts all exist needs no Ray.

    Args:
        jobs: the tasks, in the order in which they are wanted.
        verify: read all data again, also what the store's indices know.
        scan: reads many files; None: threads of this process.
    """
    address = address.resolved()  # workers have another working directory
    jobs = [replace(job, source=absolute_source(job.source)) for job in jobs]
    store, reading = address.open(), Reading(address, refresh=verify, scan=scan)
    turns = {job.source: threading.Lock() for job in jobs}  # tasks on the same data: the first one reads it

    def plan(job: TaskJob) -> TaskStatus | PlannedTask:
        try:
            with turns[job.source]:
                data = job.load(reading)
            if base.model_cfg is not None:
                data = with_checked_texts(data, base.model_cfg)
            if job.recipe.early_stop is not None:
                validation_images(data)
        except DataError as error:
            return TaskStatus(job.name, state="failed", steps=job.recipe.steps, reason=str(error))
        identity = identity_of(base, data, job.recipe, job.seed)
        if (record := find_expert(store, identity)) is not None:
            step, steps = steps_of(record, job.recipe), job.recipe.steps
            return TaskStatus(job.name, identity, "done", step, steps, aliases=data.aliases, understood=data.summary())
        return PlannedTask(job, identity, num_attempts(store, identity), data.aliases, data.summary())

    with ThreadPoolExecutor(4) as pool:
        plans = list(pool.map(plan, jobs))
    statuses = tuple(
        TaskStatus(
            plan.job.name,
            plan.identity,
            steps=plan.job.recipe.steps,
            aliases=plan.aliases,
            understood=plan.understood,
        )
        if isinstance(plan, PlannedTask)
        else plan
        for plan in plans
    )
    to_train = {index: plan for index, plan in enumerate(plans) if isinstance(plan, PlannedTask)}
    return Plan(address, base, statuses, to_train)
