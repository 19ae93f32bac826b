"""Experts in the store: the result of one fine-tuning, found by its inputs.

An expert's identity is the sha256 of everything that decides it (base, data, recipe, seed), so a second run with the
same inputs finds the record and trains nothing, on any machine. While a task trains, its resumable state and the count
of its attempts are kept next to where the record will be.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fusion.errors import DamagedBlobError, FormatError
from fusion.store import Store
from fusion.store.blobs import BlobRef, canonical_json, get_plain_json, new_nonce, put_file


@dataclass(frozen=True)
class ExpertRecord:
    """One finished expert.

    Attributes:
        identity: hex sha256 of base, data, recipe and seed.
        task, classes, templates: what it was trained on.
        base: sha256 of the base's weights.
        expert: full state dict theta_i, safetensors, fp32; None for a task that frozen base and evidence answer.
        prototypes: safetensors with `prototypes`, float32 [C, D] in the base's embedding space; None for an expert
            that came without images.
        evidence: safetensors: what tells the task's images from others (`answers.evidence`); None where not kept.
        background: colour under transparent pixels, as `#rrggbb`; None: white.
        metrics: final loss, seconds, and anything else that the training reports.
    """

    identity: str
    task: str
    classes: tuple[str, ...]
    templates: tuple[str, ...]
    base: str
    expert: BlobRef | None
    prototypes: BlobRef | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    evidence: BlobRef | None = None
    background: str | None = None

    @property
    def content(self) -> BlobRef:
        """The file that stands for the expert wherever "the same expert" is asked: its weights, else its evidence."""
        content = self.expert or self.evidence
        assert content is not None, "a record without weights has evidence"
        return content

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Any) -> ExpertRecord:
        try:
            return cls(
                identity=value["identity"],
                task=value["task"],
                classes=tuple(value["classes"]),
                templates=tuple(value["templates"]),
                base=value["base"],
                expert=BlobRef.from_json(value["expert"]) if value["expert"] else None,
                prototypes=BlobRef.from_json(value["prototypes"]) if value["prototypes"] else None,
                metrics=dict(value["metrics"]),
                evidence=BlobRef.from_json(value["evidence"]) if value.get("evidence") else None,
                background=value.get("background"),
            )
        except (KeyError, TypeError) as error:
            raise FormatError(f"not an expert's record: {error!r} is missing or of another type") from error


@dataclass(frozen=True)
class TrainingState:
    """Where an unfinished fine-tuning can resume: the last step that was finished, and a file with its tensors."""

    step: int
    tensors: BlobRef


@dataclass(frozen=True)
class UnfinishedExpert:
    """An expert that is being trained, or whose training was interrupted.

    Attributes:
        step: the step of its newest resumable state; 0 if it has none.
        attempts: how many times its training was started.
    """

    identity: str
    step: int
    attempts: int


def expert_identity(*, base: str, data: str, recipe: Mapping[str, Any], seed: int) -> str:
    """Hex sha256 that names an expert before it exists.

    Args:
        base: sha256 of the base's weights.
        data: sha256 over the training images, labels, classes and templates.
        recipe: every setting that changes the result, JSON values only.
        seed: seed of the task's random numbers.
    """
    return hashlib.sha256(
        canonical_json({"base": base, "data": data, "recipe": dict(recipe), "seed": seed})
    ).hexdigest()


def find_expert(store: Store, identity: str) -> ExpertRecord | None:
    """The record of an expert, or None if there is none yet. Raises `DamagedBlobError`, `FormatError`."""
    key = record_key(identity)
    if store.head(key) is None:
        return None
    record = ExpertRecord.from_json(get_plain_json(store, key))
    if record.identity != identity:
        raise DamagedBlobError(
            f"{store.url}/{key} is damaged: it is the record of {record.identity[:12]}…. Restore it from a backup, or "
            "delete it and run again: the task is then trained again"
        )
    return record


def put_expert(store: Store, record: ExpertRecord) -> ExpertRecord:
    """Write a record. If another worker was first, its record counts and is returned."""
    if store.put_if_absent(record_key(record.identity), canonical_json(record.to_json())):
        return record
    kept = find_expert(store, record.identity)
    assert kept is not None, "a record that was there a moment ago is gone"
    return kept


def put_expert_file(store: Store, identity: str, path: Path, *, name: str = "expert") -> BlobRef:
    """Store a file of an expert (`expert`, `prototypes`). Call it before writing the record that names the file."""
    nonce = new_nonce()
    return put_file(store, path, nonce=nonce, key=f"experts/{identity}/{name}-{{sha256}}-{nonce}.safetensors")


def put_training_state(store: Store, identity: str, path: Path, *, step: int) -> TrainingState:
    """Keep the state after `step`, then delete the older ones."""
    nonce = new_nonce()
    prefix = f"experts/{identity}/state/"
    ref = put_file(store, path, nonce=nonce, key=f"{prefix}{step:08d}-{{sha256}}-{nonce}.safetensors")
    for older in store.list(prefix):
        if older.key < f"{prefix}{step:08d}":
            store.delete(older.key)
    return TrainingState(step, ref)


def find_training_state(store: Store, identity: str) -> TrainingState | None:
    """The newest resumable state, or None. Its bytes are verified when they are read, not here."""
    found = list(store.list(f"experts/{identity}/state/"))
    if not found:
        return None
    step, sha256, _ = found[-1].key.rsplit("/", 1)[1].split("-")
    return TrainingState(int(step), BlobRef(found[-1].key, sha256, found[-1].bytes))


def drop_training_state(store: Store, identity: str) -> None:
    """Delete what only an unfinished training needs: its states and its count of attempts."""
    for part in ("state", "attempts"):
        for info in list(store.list(f"experts/{identity}/{part}/")):
            store.delete(info.key)


def count_attempt(store: Store, identity: str) -> int:
    """Record that training starts (again), and return the number of this attempt, from 1.

    The count is kept in the store because a killed lane forgets everything, and one poisoned task must not go on
    killing lanes for ever.
    """
    attempt = num_attempts(store, identity) + 1
    store.put_if_absent(f"experts/{identity}/attempts/{attempt:04d}-{new_nonce()}", b"{}")
    return attempt


def num_attempts(store: Store, identity: str) -> int:
    """How many times the training of an unfinished expert was started."""
    return sum(1 for _ in store.list(f"experts/{identity}/attempts/"))


def survey_experts(store: Store) -> tuple[int, list[UnfinishedExpert]]:
    """The number of finished experts, and the experts whose training has begun but not finished, from one listing."""
    finished: set[str] = set()
    steps: dict[str, int] = {}
    attempts: dict[str, int] = {}
    for info in store.list("experts/"):
        identity, _, rest = info.key.removeprefix("experts/").partition("/")
        if not rest:
            finished.add(identity.removesuffix(".json"))
        elif rest.startswith("state/"):
            steps[identity] = max(steps.get(identity, 0), int(rest.removeprefix("state/").split("-")[0]))
        elif rest.startswith("attempts/"):
            attempts[identity] = attempts.get(identity, 0) + 1
    begun = sorted({*steps, *attempts} - finished)
    return len(finished), [UnfinishedExpert(name, steps.get(name, 0), attempts.get(name, 0)) for name in begun]


def record_key(identity: str) -> str:
    return f"experts/{identity}.json"
