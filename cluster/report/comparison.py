"""The figures of a comparison, and the table that a terminal shows of them.

Accuracies are percent of test images. Intervals are 95 %, over the test images: of a mean over tasks, and of a mean
difference to the experts (paired over images).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.table import Table

from cluster.compare import CHECKPOINTS, Compared
from cluster.output import human_bytes, table
from cluster.report.estimates import interval, paired, percent
from cluster.report.records import ComparisonReport, Estimate, MethodFigures, SetFigures, SizedBase, UnseenMean
from cluster.run import Run

_KIND_ORDER = ("base", "frozen base", "one model", "per task", "condu")


def build_comparison(run: Run, compared: Sequence[Compared], *, settings: Mapping[str, Any]) -> ComparisonReport:
    """Everything that was found. Methods by what they keep, then by falling accuracy.

    Args:
        run: whose experts were compared.
        compared: one per method; `checkpoints` among them.
        settings: the options of the comparison.
    """
    experts = next(item for item in compared if item.method == CHECKPOINTS).tasks
    methods = [_method(item, experts) for item in compared]
    methods.sort(key=lambda m: (_KIND_ORDER.index(m.kind), m.method == CHECKPOINTS, -m.accuracy.mean))
    return ComparisonReport(
        store=run.config.store,
        base=SizedBase(run.base.architecture, run.base.sha256, run.base.weights.bytes),
        tasks=tuple(experts),
        unseen=tuple(task.name for task in run.config.unseen),
        settings=dict(settings),
        methods=tuple(methods),
    )


def comparison_table(report: ComparisonReport) -> Table:
    """One row per method."""
    rows = [
        [
            method.title,
            method.kind,
            method.accuracy.mean,
            f"{method.loss.mean:+.1f}",
            method.unseen and method.unseen.mean,
            human_bytes(method.bytes_per_task),
            human_bytes(method.shared_bytes),
            human_bytes(method.total_bytes_per_task),
            f"{method.seconds:.1f}",
        ]
        for method in report.methods
    ]
    columns = ["method", "kind", "accuracy", "points lost", "unseen", "per task", "shared", "all / tasks", "fuse s"]
    return table(
        f"Methods side by side: {len(report.tasks)} tasks, task known (%)",
        columns,
        rows,
        caption=(
            "points lost: to the experts. unseen: never-trained sets, over their own labels; – where a method has no "
            "rule for images of an unknown task. Bytes beside the base: per task, shared by all tasks, and both "
            "together divided by the number of tasks; `one model` takes the place of the base."
        ),
    )


def _method(item: Compared, experts: Mapping[str, np.ndarray]) -> MethodFigures:
    num_tasks = len(item.tasks)
    own_bytes = sum(item.task_bytes.values())
    return MethodFigures(
        method=item.method,
        title=item.title,
        kind=item.kind,
        accuracy=_mean(item.tasks),
        loss=_estimate([(experts[task], right) for task, right in item.tasks.items()]),
        tasks=_sets(item.tasks),
        unseen=_unseen(item.unseen) if item.unseen else None,
        bytes_per_task=round(own_bytes / num_tasks),
        shared_bytes=item.shared_bytes,
        total_bytes_per_task=round((own_bytes + item.shared_bytes) / num_tasks),
        seconds=round(item.seconds, 2),
        note=item.note,
    )


def _unseen(sets: Mapping[str, np.ndarray]) -> UnseenMean:
    mean = _mean(sets)
    return UnseenMean(mean.mean, mean.low, mean.high, sets=_sets(sets))


def _mean(sets: Mapping[str, np.ndarray]) -> Estimate:
    """Mean accuracy over sets and its interval, in percent: the difference to a model that is always wrong."""
    return _estimate([(right, np.zeros_like(right)) for right in sets.values()])


def _estimate(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> Estimate:
    found = paired(pairs)
    assert found is not None, "there is a set"
    return found


def _sets(sets: Mapping[str, np.ndarray]) -> dict[str, SetFigures]:
    return {name: SetFigures(percent(right), interval(right), right.size) for name, right in sets.items()}
