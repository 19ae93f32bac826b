"""The figures of a comparison: JSON values, and the table that a terminal shows of them.

Accuracies are percent of test images; intervals are 95 %, over the test images, of a mean over tasks and of a mean
difference to the experts (paired over images).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.table import Table

from cluster.compare import CHECKPOINTS, Compared
from cluster.output import human_bytes, table
from cluster.report.figures import interval, paired, percent
from cluster.run import Run

_KIND_ORDER = ("base", "one model", "per task", "condu")


def build_comparison(run: Run, compared: Sequence[Compared], *, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that was found, JSON values only. Methods by what they keep, then by falling accuracy.

    Args:
        run: whose experts were compared.
        compared: one a method; `checkpoints` among them.
        settings: the options of the comparison.
    """
    experts = next(item for item in compared if item.method == CHECKPOINTS).tasks
    methods = [_method(item, experts) for item in compared]
    methods.sort(key=lambda m: (_KIND_ORDER.index(m["kind"]), m["method"] == CHECKPOINTS, -m["accuracy"]["mean"]))
    return {
        "store": run.config.store,
        "base": {"architecture": run.base.architecture, "sha256": run.base.sha256, "bytes": run.base.weights.bytes},
        "tasks": list(experts),
        "unseen": [task.name for task in run.config.unseen],
        "settings": dict(settings),
        "methods": methods,
    }


def comparison_table(report: Mapping[str, Any]) -> Table:
    """One row a method."""
    rows = [
        [
            method["title"],
            method["kind"],
            method["accuracy"]["mean"],
            f"{method['loss']['mean']:+.1f}",
            method["unseen"] and method["unseen"]["mean"],
            human_bytes(method["bytes_per_task"]),
            human_bytes(method["shared_bytes"]),
            human_bytes(method["total_bytes_per_task"]),
            f"{method['seconds']:.1f}",
        ]
        for method in report["methods"]
    ]
    columns = ["method", "kind", "accuracy", "points lost", "unseen", "a task", "shared", "all / tasks", "fuse s"]
    return table(
        f"Methods side by side: {len(report['tasks'])} tasks, task known (%)",
        columns,
        rows,
        caption=(
            "points lost: to the experts. unseen: never-trained sets, over their own labels; – where a method has no "
            "rule for an image of no task. Bytes: beside the base, for a task, for all tasks together, and both by "
            "tasks; `one model` takes the base's place."
        ),
    )


def _method(item: Compared, experts: Mapping[str, np.ndarray]) -> dict[str, Any]:
    num_tasks = len(item.tasks)
    own_bytes = sum(item.task_bytes.values())
    return {
        "method": item.method,
        "title": item.title,
        "kind": item.kind,
        "accuracy": _mean(item.tasks),
        "loss": paired([(experts[task], right) for task, right in item.tasks.items()]),
        "tasks": _sets(item.tasks),
        "unseen": ({**_mean(item.unseen), "sets": _sets(item.unseen)} if item.unseen else None),
        "bytes_per_task": round(own_bytes / num_tasks),
        "shared_bytes": item.shared_bytes,
        "total_bytes_per_task": round((own_bytes + item.shared_bytes) / num_tasks),
        "seconds": round(item.seconds, 2),
        "note": item.note,
    }


def _mean(sets: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Mean accuracy over sets and its interval, in percent: the difference to a model that is always wrong."""
    found = paired([(right, np.zeros_like(right)) for right in sets.values()])
    assert found is not None, "there is a set"
    return found


def _sets(sets: Mapping[str, np.ndarray]) -> dict[str, Any]:
    return {
        name: {"accuracy": percent(right), "interval": interval(right), "n_test": right.size}
        for name, right in sets.items()
    }
