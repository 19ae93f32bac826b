"""Fidelity: how close a version's decoupled task vectors are to the original ones, and what each task costs.

Measured where the original is available: an expert that was just fused, or an archived one. What needs no original
(bits, bytes) is reported for every task.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from fusion.chunks import Chunk
from fusion.decouple import DecoupledExpert
from fusion.fuse import FuseCost
from fusion.modes import TellingDecoder, open_mode
from fusion.store.node_cache import NodeCache
from fusion.task_vectors import TaskVector, open_archive
from fusion.tensors import TensorFile
from fusion.versions.manifest import Manifest


@dataclass(frozen=True)
class TaskFidelity:
    """One task of a version.

    Attributes:
        session: the one in which it was fused.
        bits_set: fraction of the bits of plane 0 that count now and are 1: of a mask, or of signs that are positive.
        bits_lost: of the bits that were 1 when the task was added, the fraction lost since. Only masks lose bits.
        cosine: between delta_hat and delta over all elements; None if delta is not available, or is all zero.
        relative_error: |delta_hat - delta| / |delta|, likewise.
        trigger_bytes, archive_bytes: stored for this task alone.
        trigger: what the trigger itself tells (`TellingDecoder`); empty where it tells nothing.
    """

    task: str
    session: int
    bits_set: float
    bits_lost: float
    cosine: float | None
    relative_error: float | None
    trigger_bytes: int
    archive_bytes: int
    trigger: Mapping[str, Any]


@dataclass(frozen=True)
class FidelityReport:
    """A version's tasks, what they share, and the cost of the fuse that published it."""

    version: int
    mode: Mapping[str, Any]
    tasks: tuple[TaskFidelity, ...]
    shared_bytes: int
    seconds: float
    peak_bytes: int
    extra_bytes: int
    written_bytes: int
    rounding: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "tasks": [asdict(task) for task in self.tasks]}


def measure_fidelity(
    cache: NodeCache,
    manifest: Manifest,
    cost: FuseCost | None = None,
    *,
    experts: Mapping[str, TensorFile] | None = None,
    tasks: Sequence[str] | None = None,
) -> FidelityReport:
    """Measure tasks of a version.

    Args:
        cache: of the store.
        manifest: the version.
        cost: of the fuse that published it, if this process ran it.
        experts: full state dicts, by task. Archived task vectors are found without them.
        tasks: which ones; None: all that have an expert.
    Raises: UnknownTaskError.
    """
    chosen = manifest.state.experts().tasks if tasks is None else tasks
    measured = tuple(_measure(cache, manifest, task, (experts or {}).get(task)) for task in chosen)
    cost = cost or FuseCost()
    return FidelityReport(
        version=manifest.version,
        mode=dict(manifest.mode),
        tasks=measured,
        shared_bytes=open_mode(manifest.mode).shared_bytes(manifest.state),
        seconds=cost.seconds,
        peak_bytes=cost.peak_bytes,
        extra_bytes=cost.extra_bytes,
        written_bytes=sum(ref.bytes for ref in cost.written),
        rounding=dict(cost.rounding),
    )


def _measure(cache: NodeCache, manifest: Manifest, task: str, expert: TensorFile | None) -> TaskFidelity:
    decoupled = DecoupledExpert(cache, manifest, task)
    bench, entry = decoupled.bench, manifest.state.tasks[task]
    record = bench.record(entry)
    vector: TaskVector | None = None
    if expert is not None:
        vector = open_archive(bench.base, expert)
    elif record.archive is not None and cache.store.head(record.archive.key) is not None:
        vector = open_archive(bench.base, cache.tensors(record.archive))

    def work(chunk: Chunk) -> np.ndarray:
        written, held = decoupled.decoder.bits(chunk)
        if vector is None:
            return np.array([written, held, 0, 0, 0, 0], np.float64)
        found_N = decoupled.decoder.delta(chunk).astype(np.float64)
        exact_N = vector.delta(chunk, bench.buffers).astype(np.float64)
        error_N = found_N - exact_N
        return np.array([written, held, found_N @ exact_N, found_N @ found_N, exact_N @ exact_N, error_N @ error_N])

    written, held, product, found, exact, error = sum(bench.map(work), np.zeros(6))
    elements = sum(spec.elements for spec in bench.specs.values())
    return TaskFidelity(
        task=task,
        session=entry.session,
        bits_set=held / elements if elements else 0.0,
        bits_lost=1 - held / written if written else 0.0,
        cosine=float(product / np.sqrt(found * exact)) if found > 0 and exact > 0 else None,
        relative_error=float(np.sqrt(error / exact)) if exact > 0 else None,
        trigger_bytes=record.trigger.bytes if record.trigger else 0,
        archive_bytes=record.archive.bytes if record.archive else 0,
        trigger=decoupled.decoder.tell() if isinstance(decoupled.decoder, TellingDecoder) else {},
    )
