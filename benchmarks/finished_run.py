"""What a finished run left: its base, its experts as they were trained, and their tasks' data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cluster.config import Config, load_config
from cluster.run import jobs
from fusion.answers.clip import Clip, build_clip
from fusion.store.node_cache import NodeCache
from fusion.tensors import TensorFile
from fusion.versions.bases import Base
from fusion.versions.experts import ExpertRecord, find_expert
from fusion.versions.history import Versions
from training.data.task_data import Reading, TaskData
from training.identity import identity_of


@dataclass(frozen=True)
class FinishedRun:
    """The store of a run, opened. `data` and `experts` hold the tasks that have an expert, in configured order."""

    base: TensorFile
    clip: Clip
    data: dict[str, TaskData]
    experts: dict[str, TensorFile]


def open_finished_run(config_path: Path) -> FinishedRun:
    """The run of a configuration. Raises `SystemExit` with what to do where it did not finish."""
    config = load_config(config_path)
    store = config.address.open()
    cache, newest = NodeCache(store, config.cache), Versions(store).newest()
    if newest is None:
        raise SystemExit(f"{config.store} is empty: run the configuration first")
    data, experts = {}, {}
    for loaded, record in trained(config, newest.base):
        if record.expert is not None:
            data[loaded.name], experts[loaded.name] = loaded, cache.tensors(record.expert)
    base = cache.tensors(newest.base.weights)
    return FinishedRun(base, build_clip(newest.base, base), data, experts)


def trained(config: Config, base: Base) -> Iterator[tuple[TaskData, ExpertRecord]]:
    """Every configured task's data, and what its training left in the store. Raises `SystemExit` likewise."""
    store = config.address.open()
    for job in jobs(config):
        loaded = job.load(Reading(config.address, verify=False))
        record = find_expert(store, identity_of(base, loaded, job.recipe, job.seed))
        if record is None:
            raise SystemExit(f"{job.name} was not trained: run the configuration first")
        yield loaded, record
