"""The figures of a run, from what was measured.

Accuracies are percent of test images. Intervals are 95 %: Wilson's for one accuracy, paired over images for a
difference.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple

import numpy as np

from cluster.measure import MeasuredSet
from cluster.report.answer_figures import answer_figures, early_stop, held_out
from cluster.report.estimates import interval, paired, percent
from cluster.report.records import (
    BaseFigures,
    FailedTask,
    Fidelity,
    KeptFigures,
    Matrix,
    Metrics,
    RunReport,
    TaskFigures,
    UnseenFigures,
)
from cluster.run import Run, split_measures
from fusion.decouple import read_record
from fusion.fidelity import measure_fidelity
from fusion.modes import open_mode
from fusion.store.blobs import BlobRef
from training.answer_measure import ALL_LEARNED, EVERYTHING, PLAIN, TASK
from training.evaluate import KINDS
from training.metrics import continual


def build_report(
    run: Run, measured: Sequence[MeasuredSet], *, forgetting: Sequence[Sequence[int]] | None = None
) -> RunReport:
    """Everything that a run found.

    Args:
        run: trained and fused.
        measured: what the references of `measure_run` held.
        forgetting: correct answers [T, T] of plain continual fine-tuning, where it was run.
    """
    manifest = run.newest()
    trained, unseen = split_measures(run, measured)
    mode = open_mode(manifest.mode)
    tasks = tuple(_task(run, item, mode.name) for item in trained)
    matrices = _matrices(trained, forgetting)
    records = {name: read_record(run.cache, manifest, name) for name in run.fused()}
    modes = sorted({name for task in tasks for name in task.fused})
    routed = np.concatenate([item.sessions.routed for item in trained if item.sessions.routed is not None])
    return RunReport(
        version=manifest.version,
        mode=dict(manifest.mode),
        base=BaseFigures(manifest.base.architecture, manifest.base.sha256),
        tasks=tasks,
        loss_to_experts={
            name: paired([(item.expert, _fused(item, name, mode.name)) for item in trained if item.expert is not None])
            for name in modes
        },
        kept={name: _mean_kept([task.kept[name] for task in tasks if name in task.kept]) for name in modes},
        metrics=_all_metrics(matrices, [task.zero_shot for task in tasks]),
        matrices={name: _without_nan(matrix) for name, matrix in matrices.items()},
        unseen=tuple(_unseen(item) for item in unseen),
        unseen_gain=paired([(item.sessions.right["unknown"][-1], item.sessions.zero_shot) for item in unseen]),
        answers=answer_figures(
            run.config.predict.rule,
            trained,
            unseen,
            false_alarm=run.config.predict.abstain,
            num_labels=_num_labels(trained, unseen),
        ),
        routing_accuracy=100 * float(routed.mean()) if routed.size else None,
        bytes_per_task=round(
            sum(mode.task_bytes(r) + _size(r.prototypes) + _size(r.evidence) for r in records.values())
            / max(len(records), 1)
        ),
        shared_bytes=mode.shared_bytes(manifest.state),
        checkpoint_bytes=max((_size(run.record(name).expert) for name in records), default=0),
        fidelity=_fidelity(run),
        removed=tuple(run.removed),
        failed=tuple(FailedTask(s.name, s.reason) for s in run.statuses if s.state == "failed"),
        seconds={name: round(value, 1) for name, value in run.seconds.items()},
    )


def _matrices(trained: Sequence[MeasuredSet], forgetting: Sequence[Sequence[int]] | None) -> dict[str, np.ndarray]:
    """A[t, i] in percent, by kind; NaN where a kind has no answer."""
    matrices = {kind: _matrix(trained, kind) for kind in KINDS}
    if forgetting is not None:
        sizes = [item.sessions.num_images for item in trained]
        matrices["continual_finetuning"] = 100 * np.array(forgetting, float) / np.array(sizes, float)
    return matrices


def _all_metrics(matrices: Mapping[str, np.ndarray], zero_shot: Sequence[float]) -> dict[str, Metrics]:
    """Transfer, Avg and Last by method. The bare base never changes: every row of its matrix is the same."""
    metrics = {
        "condu": _metrics(matrices["known"]),
        "zero_shot": _metrics(np.tile(np.array(zero_shot), (len(zero_shot), 1))),
    }
    metrics |= {f"condu_{kind}": _metrics(matrices[kind]) for kind in KINDS[1:]}
    if "continual_finetuning" in matrices:
        metrics["continual_finetuning"] = _metrics(matrices["continual_finetuning"])
    return metrics


def _fidelity(run: Run) -> dict[str, Fidelity]:
    """Fidelity by task, measured where the expert's weights are still in the store."""
    names = run.fused()
    weights = {name: run.weights(name) for name in names}
    files = {name: run.cache.tensors(ref) for name, ref in weights.items() if ref is not None}
    manifest = run.newest()
    decoded = [name for name in names if name in manifest.state.experts().tasks]
    report = measure_fidelity(run.cache, manifest, experts=files, tasks=decoded)
    return {task.task: Fidelity(task.cosine, task.relative_error, task.bits_lost) for task in report.tasks}


def _task(run: Run, item: MeasuredSet, mode: str) -> TaskFigures:
    sessions, answered = item.sessions, item.answers.asked[TASK].right
    modes = sorted({*item.modes, mode})
    metrics = run.record(sessions.name).metrics
    return TaskFigures(
        name=sessions.name,
        classes=sessions.num_classes,
        n_test=sessions.num_images,
        zero_shot=percent(sessions.zero_shot),
        zero_shot_interval=interval(sessions.zero_shot),
        frozen={name: percent(right) for name, right in item.frozen.items()},
        expert=percent(item.expert) if item.expert is not None else None,
        expert_interval=interval(item.expert) if item.expert is not None else None,
        fused={name: percent(_fused(item, name, mode)) for name in modes},
        fused_interval={name: interval(_fused(item, name, mode)) for name in modes},
        kept={name: KeptFigures(100 * one.agreement, one.divergence) for name, one in sorted(item.kept.items())},
        answered=percent(answered),
        answered_interval=interval(answered),
        held_out=held_out(metrics),
        early_stop=early_stop(metrics),
    )


def _mean_kept(tasks: Sequence[KeptFigures]) -> KeptFigures | None:
    if not tasks:
        return None
    return KeptFigures(*(float(np.mean(values)) for values in zip(*map(astuple, tasks), strict=True)))


def _unseen(item: MeasuredSet) -> UnseenFigures:
    aggregated = item.sessions.right["unknown"][-1]
    assert aggregated is not None, "label space `labels` always answers"
    return UnseenFigures(
        name=item.sessions.name,
        classes=item.sessions.num_classes,
        n_test=item.sessions.num_images,
        zero_shot=percent(item.sessions.zero_shot),
        zero_shot_interval=interval(item.sessions.zero_shot),
        aggregated=percent(aggregated),
        aggregated_interval=interval(aggregated),
    )


def _fused(item: MeasuredSet, name: str, mode: str) -> np.ndarray:
    """Right answers, bool [N], of the expert that mode `name` decouples, by its texts alone; `mode` is the store's."""
    return item.answers.asked[PLAIN].right if name == mode else item.modes[name]


def _num_labels(trained: Sequence[MeasuredSet], unseen: Sequence[MeasuredSet]) -> dict[str, int]:
    learned = {name for item in trained for name in item.answers.classes}
    return {ALL_LEARNED: len(learned), EVERYTHING: len(learned.union(*(item.answers.classes for item in unseen)))}


def _matrix(trained: Sequence[MeasuredSet], kind: str) -> np.ndarray:
    """A[t, i] in percent; NaN where the kind has no answer."""
    columns = [
        [math.nan if right is None else 100 * float(right.mean()) for right in item.sessions.right[kind]]
        for item in trained
    ]
    return np.array(columns, float).T


def _metrics(matrix: np.ndarray) -> Metrics:
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:  # versions of some sessions are gone
        return Metrics(transfer=None, avg=None, last=float(matrix[-1].mean()))
    result = continual(matrix)
    return Metrics(_number(result.transfer), _number(result.avg), _number(result.last))


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def _without_nan(matrix: np.ndarray) -> Matrix:
    return tuple(tuple(_number(float(value)) for value in row) for row in matrix)


def _size(ref: BlobRef | None) -> int:
    return ref.bytes if ref else 0
