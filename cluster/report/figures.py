"""The figures of a run, from what was measured: JSON values only, which tables and pages are made of.

Accuracies are percent of test images. Intervals are 95 %: Wilson's for one accuracy, paired over images for a
difference.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from cluster.measure import MeasuredSet
from cluster.run import Run, split_measures
from fusion.decouple import read_record
from fusion.fidelity import measure_fidelity
from fusion.modes import open_mode
from training.evaluate import KINDS
from training.metrics import continual, wilson_interval

_Z = 1.959963984540054


def build_report(
    run: Run, measured: Sequence[MeasuredSet], *, forgetting: Sequence[Sequence[int]] | None = None
) -> dict[str, Any]:
    """Everything a run found, JSON values only.

    Args:
        run: trained and fused.
        measured: of `measure_run`.
        forgetting: correct answers [T, T] of plain continual fine-tuning, where it was run.
    """
    manifest = run.newest()
    trained, unseen = split_measures(run, measured)
    mode = str(manifest.mode["name"])
    tasks = [_task(item, mode) for item in trained]
    matrices = {kind: _matrix(trained, kind) for kind in KINDS}
    metrics = {"condu": _metrics(matrices["known"]), "zero_shot": _constant_metrics([t["zero_shot"] for t in tasks])}
    metrics |= {f"condu_{kind}": _metrics(matrices[kind]) for kind in KINDS[1:]}
    if forgetting is not None:
        sizes = [item.sessions.num_images for item in trained]
        matrices["continual_finetuning"] = 100 * np.array(forgetting, float) / np.array(sizes, float)
        metrics["continual_finetuning"] = _metrics(matrices["continual_finetuning"])
    records = {name: read_record(run.cache, manifest, name) for name in run.fused()}
    modes = sorted({name for task in tasks for name in task["fused"]})
    routed = np.concatenate([item.sessions.routed for item in trained if item.sessions.routed is not None])
    return {
        "version": manifest.version,
        "mode": dict(manifest.mode),
        "base": {"architecture": manifest.base.architecture, "sha256": manifest.base.sha256},
        "tasks": tasks,
        "loss_to_experts": {
            name: paired([(item.expert, _fused(item, name, mode)) for item in trained]) for name in modes
        },
        "metrics": metrics,
        "matrices": {kind: _jsonable(matrix) for kind, matrix in matrices.items()},
        "unseen": [_unseen(item) for item in unseen],
        "unseen_gain": paired([(item.sessions.right["unknown"][-1], item.sessions.zero_shot) for item in unseen]),
        "routing_accuracy": 100 * float(routed.mean()) if routed.size else None,
        "bytes_per_task": round(
            sum(r.trigger.bytes + _size(r.prototypes) for r in records.values()) / max(len(records), 1)
        ),
        "shared_bytes": open_mode(manifest.mode).shared_bytes(manifest.state),
        "checkpoint_bytes": max((run.record(name).expert.bytes for name in records), default=0),
        "fidelity": _fidelity(run),
        "removed": list(run.removed),
        "failed": [{"name": s.name, "reason": s.reason} for s in run.statuses if s.state == "failed"],
        "seconds": {name: round(value, 1) for name, value in run.seconds.items()},
    }


def _fidelity(run: Run) -> dict[str, Any]:
    """How near each decoupled task vector is to its expert's, by task; None where gc took the expert's weights."""
    names = run.fused()
    weights = {name: run.record(name).expert for name in names}
    files = {name: run.cache.tensors(ref) for name, ref in weights.items() if run.store.head(ref.key) is not None}
    report = measure_fidelity(run.cache, run.newest(), experts=files, tasks=names)
    return {
        task.task: {"cosine": task.cosine, "relative_error": task.relative_error, "bits_lost": task.bits_lost}
        for task in report.tasks
    }


def _task(item: MeasuredSet, mode: str) -> dict[str, Any]:
    sessions = item.sessions
    fused = {name: percent(_fused(item, name, mode)) for name in sorted({*item.modes, mode})}
    return {
        "name": sessions.name,
        "classes": sessions.num_classes,
        "n_test": sessions.num_images,
        "zero_shot": percent(sessions.zero_shot),
        "zero_shot_interval": interval(sessions.zero_shot),
        "expert": percent(item.expert) if item.expert is not None else None,
        "expert_interval": interval(item.expert) if item.expert is not None else None,
        "fused": fused,
        "fused_interval": {name: interval(_fused(item, name, mode)) for name in fused},
    }


def _unseen(item: MeasuredSet) -> dict[str, Any]:
    aggregated = item.sessions.right["unknown"][-1]
    assert aggregated is not None
    return {
        "name": item.sessions.name,
        "classes": item.sessions.num_classes,
        "n_test": item.sessions.num_images,
        "zero_shot": percent(item.sessions.zero_shot),
        "zero_shot_interval": interval(item.sessions.zero_shot),
        "aggregated": percent(aggregated),
        "aggregated_interval": interval(aggregated),
    }


def _fused(item: MeasuredSet, name: str, mode: str) -> np.ndarray:
    right = item.sessions.right["known"][-1] if name == mode else item.modes[name]
    assert right is not None
    return right


def _matrix(trained: Sequence[MeasuredSet], kind: str) -> np.ndarray:
    """A[t, i] in percent; NaN where the kind has no answer."""
    columns = [
        [math.nan if right is None else 100 * float(right.mean()) for right in item.sessions.right[kind]]
        for item in trained
    ]
    return np.array(columns, float).T


def _metrics(matrix: np.ndarray) -> dict[str, float | None]:
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:  # versions of some sessions are gone
        return {"transfer": None, "avg": None, "last": float(matrix[-1].mean())}
    result = continual(matrix)
    return {
        name: _number(value)
        for name, value in (("transfer", result.transfer), ("avg", result.avg), ("last", result.last))
    }


def _constant_metrics(zero_shot: Sequence[float]) -> dict[str, float | None]:
    """Of a model that never changes: every row is the same."""
    return _metrics(np.tile(np.array(zero_shot), (len(zero_shot), 1)))


def paired(pairs: Sequence[tuple[np.ndarray | None, np.ndarray | None]]) -> dict[str, float] | None:
    """Mean over sets of the difference in accuracy (percent points), and its 95 % interval, paired over images."""
    differences = [
        first.astype(float) - second.astype(float)
        for first, second in pairs
        if first is not None and second is not None
    ]
    if not differences:
        return None
    mean = float(np.mean([d.mean() for d in differences]))
    spread = _Z * math.sqrt(sum(d.var() / d.size for d in differences)) / len(differences)
    return {"mean": 100 * mean, "low": 100 * (mean - spread), "high": 100 * (mean + spread)}


def percent(right: np.ndarray) -> float:
    return 100 * float(right.mean())


def interval(right: np.ndarray) -> list[float]:
    return [100 * bound for bound in wilson_interval(int(right.sum()), right.size)]


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def _jsonable(matrix: np.ndarray) -> list[list[float | None]]:
    return [[_number(float(value)) for value in row] for row in matrix]


def _size(ref: Any) -> int:
    return ref.bytes if ref else 0
