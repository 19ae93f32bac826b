"""Fusing experts into the store: from references to a published version, in one call that may be repeated at any point.

Fusing an expert that the newest version already holds is a no-op; another expert under a taken name is refused unless
`replace` says so. Errors before the commit leave nothing behind.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from dataclasses import replace as with_changes
from pathlib import Path
from typing import Any

import torch

from fusion.bases import Base
from fusion.blobs import BlobRef, get_json, new_nonce, put_file
from fusion.cache import NodeCache
from fusion.errors import BaseMismatchError, ConfigError, TaskNameError
from fusion.experts import ExpertRecord, expert_identity, put_expert_file
from fusion.manifest import Manifest, check_task_name, unknown_task
from fusion.modes import NewExpert, Workbench, open_mode
from fusion.state import FusedState, TaskEntry, TaskRecord
from fusion.tensors import TensorFile, sha256_file
from fusion.versions import Draft, Versions, publish


@dataclass(frozen=True)
class ExpertToFuse:
    """An expert as a caller hands it over: weights in the store, or a local file, and what it is good for."""

    task: str
    weights: BlobRef | Path
    classes: tuple[str, ...] = ()
    templates: tuple[str, ...] = ()
    prototypes: BlobRef | None = None

    @classmethod
    def from_record(cls, record: ExpertRecord) -> ExpertToFuse:
        return cls(record.task, record.expert, record.classes, record.templates, record.prototypes)


@dataclass(frozen=True)
class FuseResult:
    """The version that holds the experts, and which of them were fused now or had been before."""

    manifest: Manifest
    fused: tuple[str, ...]
    unchanged: tuple[str, ...]


def fuse_experts(
    cache: NodeCache,
    base: Base,
    experts: Sequence[ExpertToFuse],
    *,
    mode: Mapping[str, Any],
    archive: bool = False,
    replace: bool = False,
    created: Mapping[str, Any] | None = None,
) -> FuseResult:
    """Fuse experts in their order, one session each (`joint`: one for all), and publish one version.

    Args:
        cache: the node's cache before the store.
        base: theta_0, already in the store (`put_base`).
        experts: at least one; names must differ.
        mode: settings of the mode, such as {"name": "signed", "bits": 2}; must be the store's.
        archive: keep each expert's file named by its record (`joint` always does).
        replace: allow another expert under a name that is taken; it counts as a new session.
        created: who, why, which configuration: goes into the manifest.
    Raises:
        TaskNameError: ill-formed, doubled or taken.
        BaseMismatchError, ConfigError: the store has another base or mode.
        StateDictError: an expert that is no expert of this base, or not finite.
    """
    if not experts:
        raise ConfigError("there is no expert to fuse")
    names = [check_task_name(expert.task) for expert in experts]
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        raise TaskNameError(f"task name {doubled[0]!r} is given twice: a name is a task's only key")
    method = open_mode(mode)
    archive = archive or method.needs_archive
    hashes = [e.weights.sha256 if isinstance(e.weights, BlobRef) else _sha256(e.weights) for e in experts]
    bench = Workbench(cache, cache.tensors(base.weights), "")
    fused: list[str] = []

    def build(parent: Manifest | None, nonce: str) -> Draft | None:
        nonlocal bench
        bench = Workbench(cache, cache.tensors(base.weights), nonce)
        state = parent.state if parent else FusedState()
        if parent:
            check_parent(parent, base, method.settings(), cache.store.url)
        new = []
        for expert, sha256 in zip(experts, hashes, strict=True):
            entry = state.tasks.get(expert.task)
            if entry and entry.expert_sha256 == sha256:
                continue
            if entry and not replace:
                assert parent is not None
                raise TaskNameError(
                    f"task name {expert.task!r} is taken in version {parent.version} of {cache.store.url} by another "
                    "expert: choose another name, or replace the old one with --replace"
                )
            if entry:
                state = with_changes(state, tasks={n: e for n, e in state.tasks.items() if n != expert.task})
            new.append(_prepare(bench, expert, sha256, base, archive=archive))
        fused[:] = [expert.task for expert in new]
        if not new:
            return None
        removed = tuple(n for n in (parent.removed if parent else ()) if n not in fused)
        return Draft(
            parent.base if parent and parent.base.model_cfg else base,
            method.settings(),
            method.fuse(bench, state, new),
            removed,
        )

    manifest = publish(
        Versions(cache.store),
        build,
        written=lambda: bench.written,
        created={
            "kind": "fuse",
            "why": f"fuse {', '.join(names[:8])}{' …' if len(names) > 8 else ''}",
            **(created or {}),
        },
    )
    assert manifest is not None, "experts were given, so a version holds them"
    return FuseResult(manifest, tuple(fused), tuple(name for name in names if name not in fused))


def decoupled_tensors(cache: NodeCache, manifest: Manifest, task: str) -> Iterator[tuple[str, torch.Tensor]]:
    """The decoupled expert theta_0 + delta_hat_i, tensor by tensor: fused ones in float32, buffers as the expert's.

    Raises `UnknownTaskError`.
    """
    entry = _entry(manifest, task)
    bench = Workbench(cache, cache.tensors(manifest.base.weights), new_nonce())
    trigger = bench.trigger(entry)
    for name in bench.base.buffer_names():
        key = f"buffer/{name}"
        yield name, trigger.tensor(key) if key in trigger else bench.base.tensor(name)
    for name, delta_N in open_mode(manifest.mode).decouple(bench, manifest.state, task):
        expert_N = torch.from_numpy(bench.base.float32(name).reshape(-1) + delta_N)
        yield name, expert_N.reshape(bench.base.specs[name].shape)


def read_record(cache: NodeCache, manifest: Manifest, task: str) -> TaskRecord:
    """A task's record in a version. Raises `UnknownTaskError`."""
    return TaskRecord.from_json(get_json(cache.store, _entry(manifest, task).record))


def _entry(manifest: Manifest, task: str) -> TaskEntry:
    if task not in manifest.state.tasks:
        raise unknown_task(task, manifest.version, manifest.state.tasks)
    return manifest.state.tasks[task]


def check_parent(parent: Manifest, base: Base, mode: Mapping[str, Any], url: str) -> None:
    """Refuse to build on a version of another base or mode. Raises `BaseMismatchError`, `ConfigError`."""
    if parent.base.sha256 != base.sha256:
        raise BaseMismatchError(
            f"{url} holds experts of base {parent.base.sha256[:12]}…, this one is of {base.sha256[:12]}…: "
            "one store has one base; use another store"
        )
    if dict(parent.mode) != dict(mode):
        raise ConfigError(
            f"{url} is fused with mode {_describe(parent.mode)}, not {_describe(mode)}: a store keeps its mode; "
            "use the same one, or another store"
        )


def _describe(mode: Mapping[str, Any]) -> str:
    rest = ", ".join(f"{key} {value}" for key, value in mode.items() if key != "name")
    return f"{mode.get('name')}" + (f" ({rest})" if rest else "")


def _prepare(bench: Workbench, expert: ExpertToFuse, sha256: str, base: Base, *, archive: bool) -> NewExpert:
    cache = bench.cache
    if isinstance(expert.weights, BlobRef):
        weights, kept = cache.tensors(expert.weights), expert.weights
    else:
        weights = TensorFile(expert.weights)
        kept = None
        if archive:
            identity = expert_identity(base=base.sha256, data="", recipe={"imported": sha256}, seed=0)
            kept = put_expert_file(cache.store, identity, expert.weights)
    prototypes = expert.prototypes
    if prototypes is not None:  # experts/ is kept by policy, a version's blobs as long as the version
        prototypes = put_file(cache.store, cache.path(prototypes), nonce=bench.nonce)
        bench.written.append(prototypes)
    describe = {
        "classes": expert.classes,
        "templates": expert.templates,
        "prototypes": prototypes,
        "archive": kept if archive else None,
    }
    return NewExpert(weights, expert.task, sha256, describe)


def _sha256(path: Path) -> str:
    TensorFile(path)  # a clear error for a missing or foreign file
    return sha256_file(path)
