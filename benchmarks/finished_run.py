"""What a finished run left: its base, its experts as they were trained, and their tasks' data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cluster.config import load_config
from cluster.run import jobs
from fusion.answers.clip import Clip, build_clip
from fusion.store.node_cache import NodeCache
from fusion.tensors import TensorFile
from fusion.versions.experts import find_expert
from fusion.versions.history import Versions
from training.data import Reading, TaskData
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
    for job in jobs(config):
        loaded = job.load(Reading(config.address, verify=False))
        record = find_expert(store, identity_of(newest.base, loaded, job.recipe, job.seed))
        if record is None:
            raise SystemExit(f"{job.name} was not trained: run the configuration first")
        if record.expert is not None:
            data[job.name], experts[job.name] = loaded, cache.tensors(record.expert)
    base = cache.tensors(newest.base.weights)
    return FinishedRun(base, build_clip(newest.base, base), data, experts)
