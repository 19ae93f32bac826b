"""What a version says about its tasks: the fused state, and the one immutable record that each task has.

The manifest holds what changes from version to version (`TaskEntry`, a few numbers per task), the record what does not
(classes, templates, trigger, prototypes), so that a manifest of a thousand tasks stays small.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from fusion.errors import FormatError
from fusion.store.blobs import BlobRef, canonical_json


@dataclass(frozen=True)
class TaskRecord:
    """One task's immutable part, a JSON blob.

    Attributes:
        task: its name.
        classes, templates: what it tells apart, in the order of its labels; empty where plain weights were fused.
        expert_sha256: of the expert's file (of the evidence, where there is no expert), which makes fusing it twice a
            no-op.
        trigger: safetensors, in the layout of the mode that wrote it (docs/format.md); None for a task that has no
            expert, because its evidence and the frozen base answer it as well.
        norm: sum over tensors of mean |delta_i|, the n_i of the paper.
        prototypes: safetensors `prototypes`, float32 [C, D]; None for plain weights.
        archive: what is kept of the original task vector where it is archived, else None.
        evidence: safetensors: what tells the task's images from others (`answers.evidence`); None where not kept.
        aliases: class to other texts that mean it.
        background: colour under transparent pixels, as `#rrggbb`; None: white.
    """

    task: str
    classes: tuple[str, ...]
    templates: tuple[str, ...]
    expert_sha256: str
    trigger: BlobRef | None
    norm: float
    prototypes: BlobRef | None = None
    archive: BlobRef | None = None
    evidence: BlobRef | None = None
    aliases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    background: str | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "task": self.task,
            "classes": list(self.classes),
            "templates": list(self.templates),
            "expert_sha256": self.expert_sha256,
            "trigger": self.trigger.to_json() if self.trigger else None,
            "norm": self.norm,
            "prototypes": self.prototypes.to_json() if self.prototypes else None,
            "archive": self.archive.to_json() if self.archive else None,
            "evidence": self.evidence.to_json() if self.evidence else None,
            "aliases": {name: list(others) for name, others in self.aliases.items()},
            **({"background": self.background} if self.background else {}),
        }

    @classmethod
    def from_json(cls, value: Any) -> TaskRecord:
        try:
            return cls(
                task=value["task"],
                classes=tuple(value["classes"]),
                templates=tuple(value["templates"]),
                expert_sha256=value["expert_sha256"],
                trigger=BlobRef.from_json(value["trigger"]) if value["trigger"] else None,
                norm=float(value["norm"]),
                prototypes=BlobRef.from_json(value["prototypes"]) if value["prototypes"] else None,
                archive=BlobRef.from_json(value["archive"]) if value["archive"] else None,
                evidence=BlobRef.from_json(value["evidence"]) if value.get("evidence") else None,
                aliases={name: tuple(others) for name, others in (value.get("aliases") or {}).items()},
                background=value.get("background"),
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise FormatError(f"not a task record: {error!r}") from error


@dataclass(frozen=True)
class TaskEntry:
    """One task's line in a manifest.

    Attributes:
        record: its immutable record.
        session: the session in which it was fused, from 1; 0 for a task without an expert, which is fused in none.
        expert_sha256: as in the record, so that a no-op is recognised without reading it.
        decoded_with: names in `FusedState.shared` of the blobs that its trigger is decoded with.
        scale: lambda_i in this version, where the mode has one per task.
    """

    record: BlobRef
    session: int
    expert_sha256: str
    decoded_with: tuple[str, ...] = ()
    scale: float | None = None

    @property
    def has_expert(self) -> bool:
        """False for a task that the frozen base answers: modes have nothing to do with it."""
        return self.session > 0

    def to_json(self) -> dict[str, Any]:
        return {
            "record": self.record.to_json(),
            "session": self.session,
            "expert_sha256": self.expert_sha256,
            "decoded_with": list(self.decoded_with),
            "scale": self.scale,
        }

    @classmethod
    def from_json(cls, value: Any) -> TaskEntry:
        return cls(
            BlobRef.from_json(value["record"]),
            int(value["session"]),
            value["expert_sha256"],
            tuple(value["decoded_with"]),
            value["scale"],
        )


@dataclass(frozen=True)
class FusedState:
    """Everything that fusing changes.

    Attributes:
        session: number of the last session, 0 for none.
        shared: the blobs that tasks share, by the names that the mode gives them, such as `unified`.
        tasks: in fused order.
        reads: names in `shared` of what fusing the next task reads: kept whichever tasks are removed.
    """

    session: int = 0
    shared: Mapping[str, BlobRef] = field(default_factory=dict)
    tasks: Mapping[str, TaskEntry] = field(default_factory=dict)
    reads: tuple[str, ...] = ()

    def experts(self) -> FusedState:
        """The state without the tasks that have no expert: what modes work with."""
        return replace(self, tasks={name: entry for name, entry in self.tasks.items() if entry.has_expert})

    def without(self, task: str) -> FusedState:
        """The state without one task. Writes nothing; every other task decouples bit for bit as before."""
        return replace(self, tasks={name: entry for name, entry in self.tasks.items() if name != task}).pruned()

    def pruned(self) -> FusedState:
        """The state without the shared blobs that no task is decoded with and no fuse reads."""
        needed = {name for entry in self.tasks.values() for name in entry.decoded_with}.union(self.reads)
        return replace(self, shared={name: ref for name, ref in self.shared.items() if name in needed})

    def blobs(self) -> list[BlobRef]:
        """Every blob that the state names itself (the records name more: triggers and prototypes)."""
        return [*self.shared.values(), *(entry.record for entry in self.tasks.values())]

    def to_json(self) -> dict[str, Any]:
        return {
            "session": self.session,
            "shared": {name: ref.to_json() for name, ref in self.shared.items()},
            "reads": list(self.reads),
            # a list: canonical JSON sorts the keys of an object, and the order of fusing matters
            "tasks": [{"task": name, **entry.to_json()} for name, entry in self.tasks.items()],
        }

    @classmethod
    def from_json(cls, value: Any) -> FusedState:
        """Raises `FormatError`, also if a task names a shared blob that the state does not list."""
        try:
            state = cls(
                session=int(value["session"]),
                shared={name: BlobRef.from_json(ref) for name, ref in value["shared"].items()},
                tasks={entry["task"]: TaskEntry.from_json(entry) for entry in value["tasks"]},
                reads=tuple(value["reads"]),
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise FormatError(f"not a fused state: {error!r}") from error
        named = {name for entry in state.tasks.values() for name in entry.decoded_with}.union(state.reads)
        if missing := sorted(named - state.shared.keys()):
            raise FormatError(f"the state names {missing[0]} but does not list it under shared")
        return state


def expert_key(base_sha256: str, state: FusedState, task: str) -> str:
    """`task@hash`: what decides a decoupled expert's weights, hashed.

    The cache key of an expert and its multiplexed model id. A publish that does not change what the hash covers leaves
    the expert warm in every replica.
    """
    entry = state.tasks[task]
    shared = [state.shared[name].sha256 for name in entry.decoded_with]
    parts = [base_sha256, shared, entry.record.sha256, entry.session, entry.scale]
    return f"{task}@{hashlib.sha256(canonical_json(parts)).hexdigest()[:16]}"
