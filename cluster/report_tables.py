"""The report as tables for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.table import Table

from cluster.output import human_bytes, table

METHOD_NAMES = {
    "condu": "condu",
    "condu_unknown": "condu, task unknown",
    "condu_union": "condu, union of all classes",
    "continual_finetuning": "continual fine-tuning",
    "zero_shot": "zero-shot base",
}


def report_tables(report: dict[str, Any]) -> list[Table]:
    """The report for a terminal."""
    modes = [name for name in ("iterative", "joint", "signed") if name in report["loss_to_experts"]]
    rows = [
        [t["name"], t["classes"], t["n_test"], _with_interval(t["zero_shot"], t["zero_shot_interval"]),
         _with_interval(t["expert"], t["expert_interval"]), *(t["fused"].get(name) for name in modes)]
        for t in report["tasks"]
    ]  # fmt: skip
    rows.append(["mean", None, sum(t["n_test"] for t in report["tasks"]), _mean(report, "zero_shot"), _mean(report, "expert"),
                 *(float(np.mean([t["fused"][name] for t in report["tasks"]])) for name in modes)])  # fmt: skip
    losses = ", ".join(f"{name} {_signed_interval(report['loss_to_experts'][name])}" for name in modes)
    columns = ["task", "classes", "test", "zero-shot", "expert", *modes]
    tables = [
        table(
            "Accuracy, task known (%, 95 % intervals)", columns, rows, caption=f"points lost to the experts: {losses}"
        )
    ]
    names = {
        "condu": f"condu ({report['mode']['name']})",
        "condu_unknown": "condu, task unknown",
        "condu_union": "condu, union of all classes",
        "continual_finetuning": "continual fine-tuning",
        "zero_shot": "zero-shot base",
    }
    rows = [
        [names[key], *(report["metrics"][key][m] for m in ("transfer", "avg", "last"))]
        for key in names
        if key in report["metrics"]
    ]
    tables.append(table("Over all sessions (%)", ["method", "Transfer", "Avg", "Last"], rows))
    if report["unseen"]:
        rows = [
            [u["name"], u["classes"], u["n_test"], _with_interval(u["zero_shot"], u["zero_shot_interval"]),
             _with_interval(u["aggregated"], u["aggregated_interval"])]
            for u in report["unseen"]
        ]  # fmt: skip
        gain = f"base and experts against the base alone: {_signed_interval(report['unseen_gain'])} points on average"
        tables.append(
            table(
                "Never trained (%)", ["task", "classes", "test", "zero-shot base", "base + experts"], rows, caption=gain
            )
        )
    rows = [
        [
            "routing accuracy, top-1",
            f"{report['routing_accuracy']:.1f} %" if report["routing_accuracy"] is not None else None,
        ],
        ["stored per task", human_bytes(report["bytes_per_task"])],
        ["stored once for all", human_bytes(report["shared_bytes"])],
        ["a checkpoint per task", human_bytes(report["checkpoint_bytes"])],
        *([f"time: {name}", f"{value:.0f} s"] for name, value in report["seconds"].items()),
    ]
    tables.append(table("Cost", ["what", "figure"], rows))
    return tables


def _mean(report: dict[str, Any], key: str) -> float:
    return float(np.mean([task[key] for task in report["tasks"]]))


def _with_interval(value: float, interval: Sequence[float]) -> str:
    return f"{value:.1f} ({interval[0]:.0f}–{interval[1]:.0f})"


def _signed_interval(value: dict[str, float]) -> str:
    return f"{value['mean']:+.1f} ({value['low']:+.1f} to {value['high']:+.1f})"
