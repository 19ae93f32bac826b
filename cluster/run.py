"""A run: fine-tune every task of a configuration in parallel, fuse them in order, measure the result.

Everything that a run makes is in the store under the identity of its inputs, so a run that was killed or is started
again continues where it stopped and trains nothing twice.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from cluster.base_source import resolve_base
from cluster.config import Config
from cluster.fusion_resources import fusion_resources
from cluster.measure import MeasuredSet, MeasureJob, measure_all, session_history
from cluster.ordered_fusion import OrderedFuser
from cluster.progress import TaskProgress
from cluster.run_metrics import RunMetrics
from cluster.shared_files import check_shared_files
from fusion.errors import ConfigError, TaskNameError
from fusion.fuse import check_parent
from fusion.store import Store
from fusion.store.blobs import BlobRef, canonical_json
from fusion.store.node_cache import NodeCache
from fusion.versions.bases import Base
from fusion.versions.experts import ExpertRecord, find_expert
from fusion.versions.history import Versions
from fusion.versions.manifest import Manifest
from training.evaluate import KINDS
from training.lanes.task_queue import TaskJob, TaskStatus

if TYPE_CHECKING:  # it imports what only a run needs
    from training.lanes.plan import Plan


@dataclass
class Run:
    """What a run works with, and what it found so far."""

    config: Config
    store: Store
    base: Base
    removed: tuple[str, ...] = ()
    """Configured tasks that the run leaves out: they were removed from the store on purpose."""
    statuses: list[TaskStatus] = field(default_factory=list)
    versions: dict[str, int] = field(default_factory=dict)
    """Task to the version in which it was fused."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Stage to how long it took."""

    @cached_property
    def cache(self) -> NodeCache:
        """One for the whole run: it remembers which files it has verified."""
        address = self.config.address
        return NodeCache(self.store, address.cache_folder, limit_bytes=address.cache_limit_bytes)

    @cached_property
    def _published(self) -> Versions:
        return Versions(self.store)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def record(self, task: str) -> ExpertRecord:
        """The record of a task that this run trained or found."""
        status = next(status for status in self.statuses if status.name == task)
        record = find_expert(self.store, status.identity)
        assert record is not None, "a task that is done has a record"
        return record

    def weights(self, task: str) -> BlobRef | None:
        """The task's expert as trained; None if it has none, or `condu versions gc --experts` deleted it once fused."""
        expert = self.record(task).expert
        return expert if expert and self.store.head(expert.key) is not None else None

    def newest(self) -> Manifest:
        manifest = self._published.newest()
        assert manifest is not None, "a run that fused a task published a version"
        return manifest

    def fused(self) -> list[str]:
        """The configured tasks that the newest version holds, in fused order."""
        configured = {task.name for task in self.config.tasks}
        return [name for name in self.newest().state.tasks if name in configured]


def open_run(config: Config, *, readd: bool = False) -> Run:
    """Check everything that can be checked without training: store, base, mode.

    Tasks that were removed from the store (`condu versions remove-task`) are left out of the run's configuration,
    unless `readd` asks for them again.

    Raises: ConfigError, BaseMismatchError, and the store's errors.
    """
    if not config.tasks:
        raise ConfigError("tasks: is empty: a run needs at least one task")
    store = config.address.open()
    base = resolve_base(config.base, store)
    parent = Versions(store).newest()
    if parent:
        check_parent(parent, base, config.fusion.settings(), store.url)
    removed = tuple(task.name for task in config.tasks if parent and task.name in parent.removed and not readd)
    left = tuple(task for task in config.tasks if task.name not in removed)
    if not left:
        raise ConfigError(
            f"tasks: all were removed from {store.url} on purpose ({', '.join(removed)}): --readd brings them back"
        )
    return Run(config.model_copy(update={"tasks": left}), store, base, removed)


def train_and_fuse(
    run: Run, ray: Any, plan: Plan, *, replace: bool = False, readd: bool = False, show: bool = True
) -> None:
    """Train every task that has no expert on the lanes and fuse in the configured order. Needs a Ray session.

    A task that is removed from the store meanwhile is trained but not fused, unless `readd` is on.

    Raises: ConfigError if lanes and fusion actor can never run at the same time, or if nodes do not see the store or
        the data; TaskNameError if a configured name holds another expert and `replace` is off; whatever fusing raises.
    """
    from fusion.actor import FusionClient
    from training.lanes.driver import cluster_nodes, run_lanes

    config = run.config
    lanes = config.train
    reserved = fusion_resources(config.fusion, lanes, cluster_nodes(), ray.available_resources(), len(config.tasks))
    parent = Versions(run.store).newest()
    client = FusionClient(
        config.address,
        num_cpus=reserved.get("CPU", 0.0),
        num_gpus=reserved.get("GPU", 0.0),
    )
    options = {
        "mode": config.fusion.settings(),
        "archive": config.fusion.archive_experts,
        "archive_dtype": config.fusion.archive_dtype,
        "replace": replace,
        "device": config.fusion.device,
        "created": {"config": config_hash(config)},
    }
    with TaskProgress(enabled=show) as progress:
        batch = config.fusion.publish == "batch"
        fuser = OrderedFuser(client, run.store, run.base, options, progress.fused, readd=readd, batch=batch)
        metrics = RunMetrics()
        first = True

        def on_status(statuses: list[TaskStatus]) -> None:
            nonlocal first
            if first and parent is not None and not replace:
                _refuse_taken_names(run.store, parent, statuses)
            train = any(status.state == "waiting" for status in statuses)
            if first and train:
                check_shared_files(ray, config.address, [task.data for task in config.tasks], lanes)
            if first and train and reserved:
                client.start(timeout_s=lanes.startup_timeout_s)  # it takes its share before the lanes take the rest
            first = False
            progress.update(statuses)
            metrics.update(statuses)
            fuser.update(statuses)

        with run.stage("train"):
            run.statuses = run_lanes(plan, lanes, on_status, reserved=reserved)
        with run.stage("fuse"):
            fuser.update(run.statuses)
            run.versions = fuser.finish()


def measure_run(
    run: Run,
    ray: Any,
    *,
    modes: Sequence[tuple[str, str]] = (),
    on_measured: Callable[[str], None] = lambda _: None,
) -> list[MeasuredSet]:
    """Measure the run's tasks and its never-trained ones on the cluster, trained ones first.

    Args:
        modes: see `MeasureJob`.
        on_measured: called with each task's name as it is measured.
    Raises: what `measure_all` raises.
    """
    return measure_all(ray, measure_jobs(run, modes), on_measured)


def measure_jobs(run: Run, modes: Sequence[tuple[str, str]] = ()) -> list[MeasureJob]:
    """What `measure_run` measures, in the same order."""
    config = run.config
    manifest = run.newest()
    fused = run.fused()
    sessions = tuple(session_history(Versions(run.store), manifest, fused)) or (manifest.version,)
    common: dict[str, Any] = {
        "address": config.address,
        "base": run.base,
        "predict": config.predict,
        "unseen": tuple(TaskJob(task.name, task.data) for task in config.unseen),
    }
    tasks = {job.name: job for job in jobs(config)}
    work = [
        MeasureJob(
            **common,
            sessions=sessions,
            task=tasks[name],
            expert=run.weights(name),
            kinds=KINDS,
            modes=tuple(modes),
        )
        for name in fused
    ]
    work += [
        MeasureJob(
            **common,
            sessions=sessions[-1:],
            task=TaskJob(task.name, task.data),
            expert=None,
            kinds=("unknown",),
            trained=False,
        )
        for task in config.unseen
    ]
    return work


def split_measures(run: Run, measured: Sequence[MeasuredSet]) -> tuple[list[MeasuredSet], list[MeasuredSet]]:
    """Trained tasks, never-trained ones."""
    count = len(measured) - len(run.config.unseen)
    return list(measured[:count]), list(measured[count:])


def jobs(config: Config) -> list[TaskJob]:
    """The lanes' work. Every task gets the run's seed; an expert's identity covers whatever else decides it."""
    return [
        TaskJob(
            name=task.name,
            source=task.data,
            recipe=config.recipe(task),
            seed=config.seed,
            classes=task.classes,
            templates=task.templates,
            aliases=task.aliases,
            background=task.background,
            image_column=task.image_column,
            label_column=task.label_column,
        )
        for task in config.tasks
    ]


def config_hash(config: Config) -> str:
    """sha256 of the configuration as parsed, defaults included."""
    return hashlib.sha256(canonical_json(config.model_dump(mode="json"))).hexdigest()


def _refuse_taken_names(store: Store, parent: Manifest, statuses: Sequence[TaskStatus]) -> None:
    for status in statuses:
        entry = parent.state.tasks.get(status.name)
        if entry is None or not status.identity:
            continue
        record = find_expert(store, status.identity)
        if record is None or record.content.sha256 != entry.expert_sha256:
            raise TaskNameError(
                f"task name {status.name!r} is taken in version {parent.version} of {store.url} by an expert with "
                "different data, recipe or seed: give the task another name, or replace the old expert with --replace"
            )
