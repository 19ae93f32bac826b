"""The demo: the whole story on the embedded default, from files in the repository, offline.

Fine-tune every task in parallel and fuse them; fuse the same experts in the other modes into scratch stores; train one
model on task after task for comparison; measure all of it; then serve the result and ask it over HTTP.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.measure import MeasuredSet
from cluster.output import console
from cluster.report.figures import build_report
from cluster.report.records import RunReport
from cluster.run import Run, jobs, measure_run, train_and_fuse
from fusion.answers.clip import build_clip
from fusion.fuse import ExpertToFuse, fuse_experts
from fusion.store import open_store
from fusion.store.address import StoreAddress
from fusion.store.node_cache import NodeCache
from fusion.versions.bases import Base, put_base
from training.continual import continual_finetuning
from training.data.task_data import Reading
from training.lanes.task_queue import TaskJob
from training.malloc import MALLOC_ENVIRONMENT

if TYPE_CHECKING:  # it imports what only a run needs
    from training.lanes.plan import Plan


def run_demo(run: Run, plan: Plan, scratch: Path, ray: Any) -> RunReport:
    """Train, fuse, compare and measure. Returns the report without the answers over HTTP."""
    console.rule("1. Fine-tune the experts and fuse them as they finish")
    baseline = _start_baseline(run, ray)
    train_and_fuse(run, ray, plan)
    console.print(f"version {run.newest().version} in {run.config.store}: {', '.join(run.fused())}")
    console.rule("2. Fuse the same experts in the other modes, measure everything")
    with run.stage("fuse"):
        scratch_stores = _fuse_other_modes(run, scratch, ray)
    with run.stage("evaluate"):
        measured = _measure(run, scratch_stores, ray)
        forgetting = _finish_baseline(run, baseline, ray)
    return build_report(run, measured, forgetting=forgetting)


def _fuse_other_modes(run: Run, scratch: Path, ray: Any) -> list[tuple[str, str]]:
    """Fuse the run's experts into a scratch store for each other mode, side by side."""
    shutil.rmtree(scratch, ignore_errors=True)
    own = run.config.fusion.settings()
    others = [settings for mode in run.config.demo.modes if (settings := mode.settings())["name"] != own["name"]]
    experts = []
    for name in run.fused():
        record = run.record(name)
        if (weights := run.weights(name)) is not None:
            experts.append(ExpertToFuse(name, run.cache.path(weights), record.classes, record.templates))
    remote = ray.remote(num_cpus=1)(_fuse_mode)
    urls = {mode["name"]: (scratch / mode["name"]).as_uri() for mode in others}
    base = run.cache.path(run.base.weights)
    ray.get([remote.remote(urls[mode["name"]], base, experts, mode) for mode in others])
    return list(urls.items())


def _fuse_mode(url: str, base_path: Path, experts: Sequence[ExpertToFuse], mode: dict[str, Any]) -> None:
    store = open_store(url)
    fuse_experts(NodeCache(store), put_base(store, base_path), experts, mode=mode)


def _measure(run: Run, scratch_stores: Sequence[tuple[str, str]], ray: Any) -> list[MeasuredSet]:
    """Measure every test set, printing each as it finishes."""
    return measure_run(run, ray, modes=scratch_stores, on_measured=lambda name: console.print(f"measured {name}"))


def _start_baseline(run: Run, ray: Any) -> Any:
    """Start continual fine-tuning. It trains one task after another, so it starts first; it reserves no core."""
    remote = ray.remote(num_cpus=0, runtime_env={"env_vars": {**MALLOC_ENVIRONMENT, "OMP_NUM_THREADS": "1"}})(
        _continual
    )
    return remote.remote(run.config.address, run.base, jobs(run.config))


def _finish_baseline(run: Run, baseline: Any, ray: Any) -> list[list[int]] | None:
    """Correct answers [T, T] of the baseline, one row per session; None where a task of the baseline was not fused."""
    names = [job.name for job in jobs(run.config)]
    if run.fused() != names:
        ray.cancel(baseline)
        return None
    rows = []
    for name, row in zip(names, baseline, strict=True):
        rows.append(ray.get(row))
        console.print(f"continual fine-tuning: session {len(rows)} of {len(names)} ({name})")
    return rows


def _continual(address: StoreAddress, base: Base, work: Sequence[TaskJob]) -> Iterator[list[int]]:
    cache = address.open_cache()
    clip = build_clip(base, cache.tensors(base.weights))
    tasks = [(job.load(Reading(address, verify=False)), job.recipe, job.seed) for job in work]
    yield from continual_finetuning(clip, tasks)
