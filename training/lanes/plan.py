"""What a run has to train: its tasks' data, read where it is new, and which of their experts exist."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from fusion.errors import DataError
from fusion.store.address import StoreAddress
from fusion.versions.bases import Base
from fusion.versions.experts import find_expert, num_attempts
from training.data import Reading, with_checked_texts
from training.identity import identity_of
from training.lanes.cluster_scan import scan_on_cluster
from training.lanes.task_queue import PlannedTask, TaskJob, TaskStatus


def plan_tasks(
    address: StoreAddress, base: Base, jobs: Sequence[TaskJob], *, verify: bool = False
) -> tuple[list[TaskStatus], dict[int, PlannedTask]]:
    """Read what is new in every task's data. Returns a status for each, and by index the tasks that have to be trained.

    So broken data is reported before anything starts, and a run whose experts all exist needs no Ray. With `verify`
    everything is read again.
    """
    store, reading = address.open(), Reading(address, refresh=verify, scan=scan_on_cluster)
    turns = {job.source: threading.Lock() for job in jobs}  # tasks on the same data: the first one reads it

    def plan(job: TaskJob) -> TaskStatus | PlannedTask:
        try:
            with turns[job.source]:
                data = job.load(reading)
            if base.model_cfg is not None:
                data = with_checked_texts(data, base.model_cfg)
        except DataError as error:
            return TaskStatus(job.name, state="failed", steps=job.recipe.steps, reason=str(error))
        identity = identity_of(base, data, job.recipe, job.seed)
        if find_expert(store, identity) is not None:
            steps = job.recipe.steps
            return TaskStatus(job.name, identity, "done", steps, steps, aliases=data.aliases, understood=data.summary())
        return PlannedTask(job, identity, num_attempts(store, identity), data.aliases, data.summary())

    with ThreadPoolExecutor(4) as pool:
        plans = list(pool.map(plan, jobs))
    statuses = [
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
    ]
    return statuses, {index: plan for index, plan in enumerate(plans) if isinstance(plan, PlannedTask)}
