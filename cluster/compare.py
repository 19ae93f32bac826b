"""Methods side by side: the experts of one configuration, stored in every way we know, all measured on the same images.

One Ray task per method. It fuses into a scratch folder of its node, rebuilds one model at a time, measures it on every
test set, and leaves nothing behind. Disk: up to one checkpoint per task while a method is measured.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from fusion.answers.clip import Clip, build_clip
from fusion.answers.options import PredictOptions
from fusion.answers.predictor import ExpertModel
from fusion.answers.prompts import prompts
from fusion.answers.view import ViewLoader
from fusion.baselines import Baseline, fuse_baseline, open_baseline
from fusion.baselines.adamerging import AdaMerging, Unlabelled
from fusion.decouple import decoupled_tensors, read_record
from fusion.fuse import ExpertToFuse, fuse_experts
from fusion.modes import Mode, modes, open_mode
from fusion.store import Store, open_store
from fusion.store.address import StoreAddress
from fusion.store.blobs import BlobRef
from fusion.store.node_cache import NodeCache
from fusion.versions.bases import Base, put_base
from fusion.versions.experts import ExpertRecord
from fusion.versions.manifest import Manifest
from training.data.task_data import Reading, TaskData, load_test_data
from training.evaluate import load_pixels, load_set, measure_set, right_of
from training.finetune import image_features
from training.frozen import DISCRIMINANT, LINEAR_PROBE, NEAREST_MEAN, frozen_right
from training.lanes.task_queue import TaskJob
from training.malloc import MALLOC_ENVIRONMENT
from training.samplers import generator_for

ZERO_SHOT, CHECKPOINTS = "zero-shot", "checkpoints"
REFERENCES = (ZERO_SHOT, CHECKPOINTS)
"""What every figure is compared with: the bare base, and the experts themselves."""
FROZEN_TITLES = {
    DISCRIMINANT: "discriminant on the frozen base",
    LINEAR_PROBE: "linear probe on the frozen base",
    NEAREST_MEAN: "nearest class mean on the frozen base",
}
"""What needs no expert. A sensible user tries it first."""
ONE_MODEL = ("average", "task-arithmetic", "ties", "adamerging")
PER_TASK = ("wise-ft", "emr", "bitdelta", "low-rank")
Kind = Literal["base", "frozen base", "one model", "per task", "condu"]
Tensors = Iterable[tuple[str, torch.Tensor]]


def condu_variants(*, more: bool = False) -> dict[str, dict[str, Any]]:
    """condu's own methods, row to settings: those that modes show by default, or (`more`) only on request."""
    return {
        row: {"name": mode.name, **options}
        for mode in modes().values()
        for row, options in (mode.more_variants() if more else mode.variants()).items()
    }


def default_methods() -> list[str]:
    """What is compared by default, references first."""
    return [*REFERENCES, *FROZEN_TITLES, *ONE_MODEL, *PER_TASK, *condu_variants()]


def all_methods() -> list[str]:
    return [*default_methods(), *condu_variants(more=True)]


@dataclass(frozen=True)
class CompareOptions:
    """Options of single methods of a comparison."""

    rank: int = 16
    """For `low-rank`: the rank of each matrix's factors."""
    num_images: int = 64
    """For `adamerging`: training images per task, without labels."""
    num_steps: int = 30
    """For `adamerging`: training steps."""
    seed: int = 0
    """For `adamerging`: decides which images."""


@dataclass(frozen=True)
class CompareJob:
    """One method, and everything needed to measure it.

    Attributes:
        method: one of `all_methods`.
        tasks, records: as configured, in fused order, and the record of each one's expert.
        unseen: never-trained test sets, by name and source.
        predict: how condu's modes answer for a never-trained image.
    """

    method: str
    address: StoreAddress
    base: Base
    tasks: tuple[TaskJob, ...]
    records: tuple[ExpertRecord, ...]
    unseen: tuple[TaskJob, ...]
    options: CompareOptions
    predict: PredictOptions

    @property
    def reading(self) -> Reading:
        """How its data is read: a run has verified it."""
        return Reading(self.address, verify=False)


@dataclass(frozen=True)
class Compared:
    """A method's results. Right answers are bool [N], one per image of a test set, so that methods can be paired.

    Attributes:
        title: for tables.
        kind: what it keeps.
        tasks: task to right answers, with the task known.
        unseen: never-trained set to right answers over its own labels; None if the method has no rule for them.
        task_bytes, shared_bytes: stored beside the base, per task and once for all. A method of kind `one model`
            stores its model in place of the base.
        seconds: to fuse all experts and write the result to disk.
        note: what readers of the figures should also know.
    """

    method: str
    title: str
    kind: Kind
    tasks: dict[str, np.ndarray]
    unseen: dict[str, np.ndarray] | None
    task_bytes: dict[str, int]
    shared_bytes: int
    seconds: float
    note: str | None = None


def compare_all(ray: Any, jobs: Sequence[CompareJob]) -> list[Any]:
    """Start every job as a Ray task on one core; returns references to `Compared`s, in order."""
    remote = ray.remote(num_cpus=1, max_retries=2, runtime_env={"env_vars": MALLOC_ENVIRONMENT})(compare_method)
    return [remote.remote(job) for job in jobs]


def compare_method(job: CompareJob) -> Compared:
    """Run a job in this process."""
    cache = job.address.open_cache()
    clip = build_clip(job.base, cache.tensors(job.base.weights))
    with tempfile.TemporaryDirectory(prefix="condu-compare-") as folder:
        if job.method == ZERO_SHOT:
            tasks, unseen = _by_one_model(job, clip)
            sizes = {task.name: 0 for task in job.tasks}
            return Compared(job.method, "zero-shot base", "base", tasks, unseen, sizes, 0, 0.0)
        if job.method in FROZEN_TITLES:
            return _frozen(job, clip)
        if settings := (condu_variants() | condu_variants(more=True)).get(job.method):
            return _mode(job, open_mode(settings), cache, clip, open_store(Path(folder).as_uri()))
        return _baseline(job, cache, clip, Path(folder))


def _frozen(job: CompareJob, clip: Clip) -> Compared:
    tasks, sizes, seconds = {}, {}, 0.0
    for task in job.tasks:
        data = task.load(job.reading)
        tests, num_classes = clip.image_features(load_pixels(clip, data)), len(data.classes)
        train, truth = (torch.from_numpy(images.labels) for images in (data.look, data.test))
        start = time.perf_counter()
        features = image_features(clip, data)
        tasks[data.name] = frozen_right(job.method, features, train, tests, truth, num_classes)
        seconds += time.perf_counter() - start
        width = features.shape[1]
        per_class = width + 1 if job.method == LINEAR_PROBE else width
        own = width * width if job.method == DISCRIMINANT else 0
        sizes[data.name] = 4 * (num_classes * per_class + own)
    return Compared(
        method=job.method,
        title=FROZEN_TITLES[job.method],
        kind="frozen base",
        tasks=tasks,
        unseen={test.name: _right(ExpertModel(clip), test) for test in _unseen(job)},
        task_bytes=sizes,
        shared_bytes=0,
        seconds=seconds,
        note="no expert, no fine-tuning; the bare base answers never-trained sets",
    )


def _baseline(job: CompareJob, cache: NodeCache, clip: Clip, folder: Path) -> Compared:
    experts = {task.name: cache.tensors(_weights(record)) for task, record in _pairs(job)}
    method = _open(job, clip)
    start = time.perf_counter()
    fused = fuse_baseline(method, cache.tensors(job.base.weights), experts, folder)
    seconds = time.perf_counter() - start
    unseen: dict[str, np.ndarray] | None = None
    note = "one expert per task and no rule for images of no known task: never-trained sets get no answers"
    if method.one_model:
        tasks, unseen = _by_one_model(job, clip.copy_with(fused.tensors(job.tasks[0].name)))
        note = "the model replaces the base"
    else:
        tasks = _by_own_models(job, clip, fused.tensors)
    if isinstance(method, AdaMerging):
        note += (
            f"; learned on {job.options.num_images} training images per task (or all, if there are fewer), without "
            f"their labels; mean entropy {method.entropies[0]:.2f} before the first step, {method.entropies[-1]:.2f} "
            "before the last"
        )
    return Compared(
        method=job.method,
        title=method.title,
        kind="one model" if method.one_model else "per task",
        tasks=tasks,
        unseen=unseen,
        task_bytes={task.name: fused.shelf.task_bytes(task.name) for task in job.tasks},
        shared_bytes=fused.shelf.shared_bytes,
        seconds=seconds,
        note=note,
    )


def _open(job: CompareJob, clip: Clip) -> Baseline:
    if job.method == "adamerging":
        images = {task.name: _unlabelled(job, clip, task) for task in job.tasks}
        return AdaMerging(clip, images, num_steps=job.options.num_steps)
    return open_baseline(job.method, **({"rank": job.options.rank} if job.method == "low-rank" else {}))


def _unlabelled(job: CompareJob, clip: Clip, task: TaskJob) -> Unlabelled:
    """Some training images of a task, drawn evenly, with its first template's prompts. Labels are not used."""
    data = task.load(job.reading)
    order = torch.randperm(len(data.train), generator=generator_for(job.options.seed, f"unlabelled/{task.name}", 0))
    pixels = clip.pixels([data.train.image(index) for index in order[: job.options.num_images].tolist()])
    return Unlabelled(pixels, tuple(prompts(data.classes, data.templates[:1])))


def _mode(job: CompareJob, mode: Mode, cache: NodeCache, clip: Clip, scratch: Store) -> Compared:
    base = put_base(
        scratch,
        cache.path(job.base.weights),
        architecture=job.base.architecture,
        model_cfg=job.base.model_cfg,
        preprocess_cfg=job.base.preprocess_cfg,
    )
    experts = []
    for task, record in _pairs(job):
        for ref in (record.prototypes, record.evidence):
            if ref:
                scratch.put_if_absent(ref.key, cache.path(ref))
        weights = cache.path(_weights(record))
        experts.append(replace(ExpertToFuse.from_record(record), task=task.name, weights=weights))
    own = NodeCache(scratch)
    start = time.perf_counter()
    manifest = fuse_experts(own, base, experts, mode=mode.settings()).manifest
    seconds = time.perf_counter() - start
    note = "never-trained sets: base and routed experts together (label space `labels`)"
    return Compared(
        method=job.method,
        title=f"condu {mode.title()}",
        kind="condu",
        tasks=_by_own_models(job, clip, lambda task: decoupled_tensors(own, manifest, task)),
        unseen=_unseen_by_label_space(job, own, manifest, clip),
        task_bytes={task.name: mode.task_bytes(read_record(own, manifest, task.name)) for task in job.tasks},
        shared_bytes=mode.shared_bytes(manifest.state),
        seconds=seconds,
        note=f"{note}; {mode.note}" if mode.note else note,
    )


def _unseen_by_label_space(job: CompareJob, own: NodeCache, manifest: Manifest, clip: Clip) -> dict[str, np.ndarray]:
    """Right answers of a version on the never-trained sets, in label space `labels`."""
    view = ViewLoader(own).load(manifest)
    found = {}
    for test in _unseen(job):
        measured = measure_set(own, load_set(clip, test), [view], kinds=("unknown",), predict=job.predict)
        right = measured.right["unknown"][0]
        assert right is not None, "label space `labels` always answers"
        found[test.name] = right
    return found


def _weights(record: ExpertRecord) -> BlobRef:
    assert record.expert is not None, "tasks without an expert are not compared"
    return record.expert


def _pairs(job: CompareJob) -> Iterable[tuple[TaskJob, ExpertRecord]]:
    return zip(job.tasks, job.records, strict=True)


def _by_one_model(job: CompareJob, clip: Clip) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Right answers of one model: on the tasks, and on the never-trained sets."""
    model = ExpertModel(clip)
    tests = (task.load(job.reading) for task in job.tasks)
    return {test.name: _right(model, test) for test in tests}, {test.name: _right(model, test) for test in _unseen(job)}


def _by_own_models(job: CompareJob, clip: Clip, tensors: Callable[[str], Tensors]) -> dict[str, np.ndarray]:
    """Right answers on each task by the task's own model. One model is in memory at a time."""
    return {
        task.name: _right(ExpertModel(clip.copy_with(tensors(task.name))), task.load(job.reading)) for task in job.tasks
    }


def _unseen(job: CompareJob) -> Iterable[TaskData]:
    return (load_test_data(task.name, task.source, job.reading) for task in job.unseen)


def _right(model: ExpertModel, test: TaskData) -> np.ndarray:
    return right_of(model, model.clip.image_features(load_pixels(model.clip, test)), test)
