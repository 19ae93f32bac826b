"""A version as a predictor sees it: each task's classes, prototypes and evidence, and the key of its expert."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property, partial

import torch

from fusion.answers.evidence import Evidence
from fusion.answers.label_matching import meanings
from fusion.answers.router import Router
from fusion.store.blobs import BlobRef, get_json
from fusion.store.node_cache import NodeCache
from fusion.versions.manifest import Manifest
from fusion.versions.state import TaskEntry, TaskRecord, expert_key

_READ_THREADS = 8
_Read = tuple[TaskRecord, torch.Tensor | None, Evidence | None]


@dataclass(frozen=True)
class TaskView:
    """One task of a version.

    Attributes:
        expert: `task@hash`, the key of its decoupled expert.
        prototypes: float32 [C, D]; None for a task fused from plain weights, to which nothing is routed.
        evidence: None for a task that was learned before evidence was kept, or fused from plain weights.
        aliases: class to other texts that mean it.
        has_expert: False for a task that the frozen base answers, with the task's evidence.
        trigger: where its expert's trigger is; None without an expert.
        background: colour under an image's transparent pixels, as in training; None: white.
    """

    name: str
    classes: tuple[str, ...]
    templates: tuple[str, ...]
    expert: str
    prototypes: torch.Tensor | None
    evidence: Evidence | None = None
    aliases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    has_expert: bool = True
    trigger: BlobRef | None = None
    background: str | None = None

    @property
    def temperature(self) -> float:
        """What the task's logits are divided by."""
        return self.evidence.temperature if self.evidence else 1.0

    @cached_property
    def meanings(self) -> Mapping[str, str]:
        """Every text that means one of the classes, folded, and the class (`answers.label_matching`)."""
        return meanings(self.classes, self.aliases)


@dataclass(frozen=True)
class View:
    """One version, ready to answer. Tasks are in the order in which they were fused."""

    manifest: Manifest
    tasks: Mapping[str, TaskView]
    router: Router | None = None
    """Of the tasks that have classes; None unless all of them have evidence."""

    @property
    def version(self) -> int:
        return self.manifest.version

    def background(self, task: str | None) -> str | None:
        """Colour under transparent pixels: that of a task which is named and known, else None (white)."""
        return self.tasks[task].background if task is not None and task in self.tasks else None

    def routable(self) -> dict[str, torch.Tensor]:
        """Prototypes of every task that has them."""
        return {name: task.prototypes for name, task in self.tasks.items() if task.prototypes is not None}


class ViewLoader:
    """Loads views. Records and prototypes are immutable, so a new version costs only what it adds."""

    def __init__(self, cache: NodeCache) -> None:
        self._cache = cache
        self._read: dict[str, _Read] = {}
        self._lock = threading.Lock()

    def load(self, manifest: Manifest) -> View:
        """Raises the store's errors; nothing is kept of a view that could not be read completely."""
        entries = list(manifest.state.tasks.values())
        missing = [entry for entry in entries if entry.record.key not in self._read]
        with ThreadPoolExecutor(_READ_THREADS) as pool:
            found = dict(
                zip(
                    (e.record.key for e in missing),
                    pool.map(partial(_read, self._cache), missing),
                    strict=True,
                )
            )
        with self._lock:
            self._read.update(found)
            read = [self._read[entry.record.key] for entry in entries]
        tasks = {name: _task_view(manifest, name, *one) for name, one in zip(manifest.state.tasks, read, strict=True)}
        return View(manifest, tasks, _router(tasks))


def load_task_view(cache: NodeCache, manifest: Manifest, task: str) -> TaskView:
    """One task of a version. Raises the store's errors."""
    return _task_view(manifest, task, *_read(cache, manifest.state.tasks[task]))


def _read(cache: NodeCache, entry: TaskEntry) -> _Read:
    record = TaskRecord.from_json(get_json(cache.store, entry.record))
    prototypes = evidence = None
    if record.prototypes is not None:
        prototypes = cache.tensors(record.prototypes).tensor("prototypes").clone()
    if record.evidence is not None:
        evidence = Evidence.from_file(cache.tensors(record.evidence))
    return record, prototypes, evidence


def _task_view(
    manifest: Manifest, name: str, record: TaskRecord, prototypes: torch.Tensor | None, evidence: Evidence | None
) -> TaskView:
    return TaskView(
        name=name,
        classes=record.classes,
        templates=record.templates,
        expert=expert_key(manifest.base.sha256, manifest.state, name),
        prototypes=prototypes,
        evidence=evidence,
        aliases=record.aliases,
        has_expert=record.trigger is not None,
        trigger=record.trigger,
        background=record.background,
    )


def _router(tasks: Mapping[str, TaskView]) -> Router | None:
    evidence = {name: task.evidence for name, task in tasks.items() if task.classes}
    known = {name: one for name, one in evidence.items() if one is not None}
    return Router(known) if known and len(known) == len(evidence) else None
