"""Fusing experts into the store: from references to a published version, in one call that may be repeated.

Fusing an expert that the newest version already holds is a no-op; another expert under a taken name is refused unless
`replace` allows it. Errors before the commit leave nothing behind.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from fusion.archives import archive_expert
from fusion.chunks import map_chunks
from fusion.errors import BaseMismatchError, BlobNotFoundError, ConfigError, TaskNameError, UnknownVersionError
from fusion.kernels import StateDtype, available_cores, load_kernels
from fusion.memory import PeakMemory
from fusion.modes import Mode, NewExpert, Workbench, in_words, open_mode
from fusion.store.blobs import BlobRef, put_file
from fusion.store.node_cache import NodeCache
from fusion.task_vectors import ExpertVector
from fusion.tensors import TensorFile, sha256_file
from fusion.versions.bases import Base
from fusion.versions.experts import ExpertRecord
from fusion.versions.history import Versions
from fusion.versions.manifest import Manifest, check_task_name
from fusion.versions.publish import Draft, publish
from fusion.versions.state import FusedState, TaskEntry, TaskRecord


@dataclass(frozen=True)
class ExpertToFuse:
    """An expert as a caller provides it: weights in the store or in a local file, and the classes that it knows.

    Without weights, the task is answered by the frozen base and the evidence, which then must be given.
    """

    task: str
    weights: BlobRef | Path | None
    classes: tuple[str, ...] = ()
    templates: tuple[str, ...] = ()
    prototypes: BlobRef | None = None
    evidence: BlobRef | None = None
    aliases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    background: str | None = None
    label: str | None = None
    """What messages call the weights; None: their path or key."""

    @classmethod
    def from_record(cls, record: ExpertRecord) -> ExpertToFuse:
        return cls(
            record.task,
            record.expert,
            record.classes,
            record.templates,
            record.prototypes,
            record.evidence,
            background=record.background,
        )


@dataclass(frozen=True)
class FuseCost:
    """What a fuse cost.

    Attributes:
        seconds: from the call to the published version, including every hash and fsync.
        pass_seconds: the part spent in passes over the elements: reading, arithmetic, writing.
        peak_bytes: peak resident memory of the process.
        extra_bytes: its growth during the call.
        written: every blob that was written.
        rounding: relative error of each thing that was stored in fewer than 32 bits.
    """

    seconds: float = 0.0
    pass_seconds: float = 0.0
    peak_bytes: int = 0
    extra_bytes: int = 0
    written: tuple[BlobRef, ...] = ()
    rounding: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class FuseResult:
    """The version that holds the experts, which of them were fused now and which had been before, and the cost."""

    manifest: Manifest
    fused: tuple[str, ...]
    unchanged: tuple[str, ...]
    cost: FuseCost = FuseCost()


def fuse_experts(
    cache: NodeCache,
    base: Base,
    experts: Sequence[ExpertToFuse],
    *,
    mode: Mapping[str, Any],
    archive: bool = False,
    archive_dtype: StateDtype = "float32",
    replace: bool = False,
    created: Mapping[str, Any] | None = None,
    device: str = "cpu",
    on_stage: Callable[[str], None] = lambda stage: None,
) -> FuseResult:
    """Fuse experts in the order given, in one session each or in one for all, as the mode does; publish one version.

    Args:
        cache: this node's cache of the store.
        base: theta_0, already in the store (`put_base`).
        experts: at least one; names must differ.
        mode: settings of the mode, its name and options; must be the store's.
        archive: keep each expert permanently, named by its record. Always on in a mode that needs the archive.
        archive_dtype: what is kept: with `float32` the expert's file, else its task vector in this dtype.
        replace: allow another expert under a name that is taken; it counts as a new session.
        created: who fused, why, and from which configuration, for the manifest.
        device: the torch device that does the arithmetic.
        on_stage: called with each stage as it begins: `verify`, `fuse`, `publish`.
    Raises:
        TaskNameError: a name is malformed, given twice or taken.
        BaseMismatchError, ConfigError: the store has a different base or mode.
        StateDictError: an expert does not match the base, or is not finite.
    """
    names = _checked_names(experts)
    method = open_mode(mode)
    meter = _Meter()
    versions = Versions(cache.store)
    on_stage("verify")
    hashes = _verify(cache, base, experts, versions.newest(), device)
    kept = archive_dtype if archive or method.needs_archive else None
    draft = _FuseDraft(cache, base, list(zip(experts, hashes, strict=True)), method, kept, replace)

    def build(parent: Manifest | None, nonce: str) -> Draft | None:
        on_stage("fuse")
        meter.bench = Workbench(cache, cache.tensors(base.weights), nonce, device=device)
        made = draft.build(meter.bench, parent)
        if made is not None:
            on_stage("publish")
        return made

    why = f"fuse {', '.join(names[:8])}{' …' if len(names) > 8 else ''}"
    manifest = publish(versions, build, written=meter.written, created={"kind": "fuse", "why": why, **(created or {})})
    assert manifest is not None, "experts were given, so a version holds them"
    fused = tuple(draft.fused)
    return FuseResult(manifest, fused, tuple(name for name in names if name not in fused), meter.cost())


def _checked_names(experts: Sequence[ExpertToFuse]) -> list[str]:
    """The tasks' names. Raises `ConfigError` if there is no expert, and `TaskNameError`."""
    if not experts:
        raise ConfigError("there is no expert to fuse")
    names = [check_task_name(expert.task) for expert in experts]
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        raise TaskNameError(f"task name {doubled[0]!r} is given twice: a name is a task's only key")
    return names


@dataclass
class _FuseDraft:
    """What one call of `fuse_experts` wants the next version to be, whatever the newest one is by then.

    Attributes:
        experts: with the sha256 of each one's file.
        archive: the dtype that originals are archived in; None: they are not.
        fused: the tasks that the last draft fuses; the others were there already.
    """

    cache: NodeCache
    base: Base
    experts: Sequence[tuple[ExpertToFuse, str]]
    method: Mode
    archive: StateDtype | None
    replace: bool
    fused: list[str] = field(default_factory=list)

    def build(self, bench: Workbench, parent: Manifest | None) -> Draft | None:
        """The version to publish on top of `parent`; None where that one holds every expert."""
        if parent:
            check_parent(parent, self.base, self.method.settings(), self.cache.store.url)
        state = parent.state if parent else FusedState()
        new: list[NewExpert] = []
        heads: dict[str, TaskEntry] = {}
        for expert, sha256 in self.experts:
            entry = state.tasks.get(expert.task)
            if entry and entry.expert_sha256 == sha256:
                continue
            if entry and not self.replace:
                assert parent is not None
                raise TaskNameError(
                    f"task name {expert.task!r} is taken in version {parent.version} of {self.cache.store.url} by "
                    "another expert: choose another name, or replace the old one with --replace"
                )
            if entry:
                state = state.without(expert.task)
            if expert.weights is None:
                heads[expert.task] = _put_head(bench, expert, sha256)
            else:
                new.append(_prepare(bench, expert, expert.weights, sha256, self.base, archive=self.archive))
        named = {*heads, *(expert.task for expert in new)}
        self.fused = [expert.task for expert, _ in self.experts if expert.task in named]
        if not self.fused:
            return None
        removed = tuple(name for name in (parent.removed if parent else ()) if name not in self.fused)
        known = parent.base if parent and parent.base.model_cfg else self.base
        fused = self.method.fuse(bench, state.experts(), new) if new else state.experts()
        all_tasks = {**state.tasks, **{name: heads.get(name) or fused.tasks[name] for name in self.fused}}
        return Draft(known, self.method.settings(), _in_order(fused, all_tasks), removed)


def rebuild_from_archive(
    cache: NodeCache,
    *,
    mode: Mapping[str, Any],
    created: Mapping[str, Any] | None = None,
    device: str = "cpu",
) -> FuseResult:
    """Publish the newest version's tasks rebuilt from their archived task vectors, in the same mode or another one.

    Nothing of the old shared state remains in it, including traces of tasks that were removed or replaced. Older
    versions keep their own mode.

    Raises: UnknownVersionError when nothing was published; ConfigError, naming the tasks, when archives are missing.
    """
    method = open_mode(mode)
    meter = _Meter()

    def build(parent: Manifest | None, nonce: str) -> Draft:
        if parent is None:
            raise UnknownVersionError(f"nothing was published in {cache.store.url} yet: there is nothing to rebuild")
        bench = meter.bench = Workbench(cache, cache.tensors(parent.base.weights), nonce, device=device)
        entries = parent.state.experts().tasks
        if missing := [task for task, entry in entries.items() if bench.record(entry).archive is None]:
            raise ConfigError(
                f"the original task vectors of {', '.join(missing[:8])}{' …' if len(missing) > 8 else ''} were not "
                f"archived in {cache.store.url}, so they can't be rebuilt: fuse these experts again with --replace "
                "--archive, or start a new store"
            )
        experts = [bench.archived(task, entry) for task, entry in entries.items()]
        rebuilt = _in_order(method.rebuild(bench, experts), parent.state.tasks)
        return Draft(parent.base, method.settings(), rebuilt, parent.removed)

    why = f"rebuild from the archive, {in_words(method.settings())}"
    manifest = publish(
        Versions(cache.store), build, written=meter.written, created={"kind": "rebuild", "why": why, **(created or {})}
    )
    assert manifest is not None
    return FuseResult(manifest, tuple(manifest.state.tasks), (), meter.cost())


class _Meter:
    """Follows the attempts of one call: the latest workbench, time and memory."""

    def __init__(self) -> None:
        self.bench: Workbench | None = None
        self._memory = PeakMemory()
        self._start = time.perf_counter()

    def written(self) -> list[BlobRef]:
        return self.bench.written if self.bench else []

    def cost(self) -> FuseCost:
        return FuseCost(
            seconds=time.perf_counter() - self._start,
            pass_seconds=self.bench.pass_seconds if self.bench else 0.0,
            peak_bytes=self._memory.peak_bytes(),
            extra_bytes=self._memory.extra_bytes(),
            written=tuple(self.written()),
            rounding=dict(self.bench.rounding) if self.bench else {},
        )


def _verify(
    cache: NodeCache, base: Base, experts: Sequence[ExpertToFuse], parent: Manifest | None, device: str
) -> list[str]:
    """The sha256 of every expert. In parallel, what the fuse is going to read is verified and the kernels are loaded.

    Loading the kernels takes as long as hashing 400 MB.
    """
    needed = [parent.state.shared[name] for name in parent.state.reads] if parent else []
    jobs: list[Callable[[], Any]] = [partial(load_kernels, device)]
    jobs += [partial(_sha256, expert) for expert in experts]
    jobs += [partial(cache.path, base.weights), *(partial(_verify_if_there, cache, ref) for ref in needed)]
    done = map_chunks(lambda job: job(), jobs, threads=available_cores())
    return done[1 : len(experts) + 1]


def _verify_if_there(cache: NodeCache, ref: BlobRef) -> None:
    with suppress(BlobNotFoundError):  # gc took it: there is a newer version, and the draft is built on that
        cache.path(ref)


def _sha256(expert: ExpertToFuse) -> str:
    weights = expert.weights or expert.evidence
    if weights is None:
        raise ConfigError(f"task {expert.task!r} has neither an expert nor evidence: nothing could answer it")
    if isinstance(weights, BlobRef):
        return weights.sha256
    TensorFile(weights, label=expert.label)  # a clear error for a missing or foreign file
    return sha256_file(weights)


def check_parent(parent: Manifest, base: Base, mode: Mapping[str, Any], url: str) -> None:
    """Refuse to build on a version with another base or mode. Raises `BaseMismatchError`, `ConfigError`."""
    if parent.base.sha256 != base.sha256:
        raise BaseMismatchError(
            f"{url} holds experts of base {parent.base.sha256[:12]}…, this one has base {base.sha256[:12]}…: "
            "one store has one base; use another store"
        )
    if dict(parent.mode) != dict(mode):
        raise ConfigError(
            f"{url} is fused with mode {in_words(parent.mode)}, not {in_words(mode)}: use the same one or another "
            "store, or rebuild everything in that mode with `condu fuse --from-archive`"
        )


def _in_order(fused: FusedState, tasks: Mapping[str, TaskEntry]) -> FusedState:
    """What a mode made, with the tasks that it does not know (they have no expert) in their places."""
    return dataclasses.replace(fused, tasks={name: fused.tasks.get(name, entry) for name, entry in tasks.items()})


def _prepare(
    bench: Workbench,
    expert: ExpertToFuse,
    weights: BlobRef | Path,
    sha256: str,
    base: Base,
    *,
    archive: StateDtype | None,
) -> NewExpert:
    cache = bench.cache
    file = cache.tensors(weights) if isinstance(weights, BlobRef) else TensorFile(weights, label=expert.label)
    vector = ExpertVector(bench.base, file)
    kept = None
    if archive:
        kept = archive_expert(bench, vector, weights, sha256, base_sha256=base.sha256, dtype=archive)
    return NewExpert(vector, expert.task, sha256, {**_described(bench, expert), "archive": kept})


def _put_head(bench: Workbench, expert: ExpertToFuse, sha256: str) -> TaskEntry:
    """Store the record of a task without an expert. Returns its line for the manifest."""
    return bench.put(
        TaskRecord(expert.task, expert_sha256=sha256, trigger=None, norm=0.0, **_described(bench, expert)), session=0
    )


def _described(bench: Workbench, expert: ExpertToFuse) -> dict[str, Any]:
    """What a task's record says beside its trigger."""
    return {
        "classes": expert.classes,
        "templates": expert.templates,
        "prototypes": _copied(bench, expert.prototypes),
        "evidence": _copied(bench, expert.evidence),
        "aliases": expert.aliases,
        "background": expert.background,
    }


def _copied(bench: Workbench, ref: BlobRef | None) -> BlobRef | None:
    """A blob of an expert as a blob of a version: `experts/` is kept by policy, a version's as long as the version."""
    if ref is None:
        return None
    copy = put_file(bench.cache.store, bench.cache.path(ref), nonce=bench.nonce)
    bench.written.append(copy)
    return copy
