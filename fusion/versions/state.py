"""What a version says about its tasks: the fused state, and the one immutable record that each task has.

The manifest holds what changes from version to version (`TaskEntry`, a few numbers a task), the record what does not
(classes, templates, trigger, prototypes), so that a manifest of a thousand tasks stays small.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fusion.errors import FormatError
from fusion.store.blobs import BlobRef, canonical_json


@dataclass(frozen=True)
class TaskRecord:
    """One task's immutable part, a JSON blob.

    Attributes:
        task: its name.
        classes, templates: what it tells apart, in the order of its labels; empty where plain weights were fused.
        expert_sha256: of the expert's file, which makes fusing it twice a no-op.
        trigger: safetensors: `plane/K/NAME`, in `signed` `row/NAME` and `level/NAME`, and `buffer/NAME`.
        norm: sum over tensors of mean |delta_i|, the n_i that `iterative` and `joint` conserve.
        prototypes: safetensors `prototypes`, float32 [C, D]; None for plain weights.
        archive: the expert's file where it is archived, else None.
    """

    task: str
    classes: tuple[str, ...]
    templates: tuple[str, ...]
    expert_sha256: str
    trigger: BlobRef
    norm: float
    prototypes: BlobRef | None = None
    archive: BlobRef | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "task": self.task,
            "classes": list(self.classes),
            "templates": list(self.templates),
            "expert_sha256": self.expert_sha256,
            "trigger": self.trigger.to_json(),
            "norm": self.norm,
            "prototypes": self.prototypes.to_json() if self.prototypes else None,
            "archive": self.archive.to_json() if self.archive else None,
        }

    @classmethod
    def from_json(cls, value: Any) -> TaskRecord:
        try:
            return cls(
                task=value["task"],
                classes=tuple(value["classes"]),
                templates=tuple(value["templates"]),
                expert_sha256=value["expert_sha256"],
                trigger=BlobRef.from_json(value["trigger"]),
                norm=float(value["norm"]),
                prototypes=BlobRef.from_json(value["prototypes"]) if value["prototypes"] else None,
                archive=BlobRef.from_json(value["archive"]) if value["archive"] else None,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise FormatError(f"not a task record: {error!r}") from error


@dataclass(frozen=True)
class TaskEntry:
    """One task's line in a manifest.

    Attributes:
        record: its immutable record.
        session: in which session it was fused, from 1.
        scale: lambda_i in this version (`iterative`, `joint`).
        profile: sha256 of the profile that decodes its trigger (`signed`).
        expert_sha256: as in the record, so that a no-op is found without reading it.
    """

    record: BlobRef
    session: int
    expert_sha256: str
    scale: float | None = None
    profile: str | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "record": self.record.to_json(),
            "session": self.session,
            "expert_sha256": self.expert_sha256,
            "scale": self.scale,
            "profile": self.profile,
        }

    @classmethod
    def from_json(cls, value: Any) -> TaskEntry:
        return cls(
            BlobRef.from_json(value["record"]),
            int(value["session"]),
            value["expert_sha256"],
            value["scale"],
            value["profile"],
        )


@dataclass(frozen=True)
class Profile:
    """A shared magnitude profile of mode `signed`, and how many tasks it was opened for."""

    blob: BlobRef
    num_tasks: int


@dataclass(frozen=True)
class FusedState:
    """Everything that fusing changes: how far the sessions got, what the tasks share, and the tasks, in fused order."""

    session: int = 0
    unified: BlobRef | None = None
    last_flip: BlobRef | None = None
    profiles: tuple[Profile, ...] = ()
    tasks: Mapping[str, TaskEntry] = field(default_factory=dict)

    def profile(self, sha256: str) -> Profile:
        for profile in self.profiles:
            if profile.blob.sha256 == sha256:
                return profile
        raise FormatError(f"the version names profile {sha256[:12]}… and does not list it")

    def shared(self) -> list[BlobRef]:
        """The blobs that tasks share: tau and last_flip, or the profiles."""
        return [ref for ref in (self.unified, self.last_flip) if ref] + [profile.blob for profile in self.profiles]

    def blobs(self) -> list[BlobRef]:
        """Every blob that the state names itself (the records name more: triggers and prototypes)."""
        return self.shared() + [entry.record for entry in self.tasks.values()]

    def to_json(self) -> dict[str, Any]:
        return {
            "session": self.session,
            "unified": self.unified.to_json() if self.unified else None,
            "last_flip": self.last_flip.to_json() if self.last_flip else None,
            "profiles": [{"blob": p.blob.to_json(), "num_tasks": p.num_tasks} for p in self.profiles],
            # a list: canonical JSON sorts the keys of an object, and the order of fusing matters
            "tasks": [{"task": name, **entry.to_json()} for name, entry in self.tasks.items()],
        }

    @classmethod
    def from_json(cls, value: Any) -> FusedState:
        try:
            return cls(
                session=int(value["session"]),
                unified=BlobRef.from_json(value["unified"]) if value["unified"] else None,
                last_flip=BlobRef.from_json(value["last_flip"]) if value["last_flip"] else None,
                profiles=tuple(Profile(BlobRef.from_json(p["blob"]), int(p["num_tasks"])) for p in value["profiles"]),
                tasks={entry["task"]: TaskEntry.from_json(entry) for entry in value["tasks"]},
            )
        except (KeyError, TypeError, ValueError) as error:
            raise FormatError(f"not a fused state: {error!r}") from error


def expert_key(base_sha256: str, state: FusedState, task: str) -> str:
    """`task@hash`: what decides a decoupled expert's weights, hashed.

    The cache key of an expert and its multiplexed model id. A publish that does not change what the hash covers leaves
    the expert warm in every replica.
    """
    entry = state.tasks[task]
    shared = [entry.profile] if entry.profile else [ref.sha256 for ref in (state.unified, state.last_flip) if ref]
    parts = [base_sha256, shared, entry.record.sha256, entry.session, entry.scale]
    return f"{task}@{hashlib.sha256(canonical_json(parts)).hexdigest()[:16]}"
