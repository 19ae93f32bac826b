"""The report as tables: the same ones on a terminal and on the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.table import Table

from cluster.output import human_bytes, table
from cluster.report.records import EarlyStop, Estimate, Fidelity, HeldOut, Interval, KeptFigures, RunReport

METHOD_NAMES = {
    "condu": "condu",
    "condu_unknown": "condu, task unknown",
    "condu_union": "condu, union of all classes",
    "continual_finetuning": "continual fine-tuning",
    "zero_shot": "zero-shot base",
}
"""The keys of `RunReport.metrics`, in the order of the table."""
WAYS = {
    "task": "task named",
    "labels": "labels given",
    "seen": "nothing given",
    "all_learned": "all learned",
    "everything": "learned and never trained",
}
"""Ways of asking, in words."""


def report_tables(report: RunReport) -> list[Table]:
    """Accuracy per task, what the frozen base gets without experts, how the version answers, the sessions' metrics, the
    never-trained tasks (where there are any), and the cost."""
    unseen = [_unseen(report)] if report.unseen else []
    return [_accuracy(report), _company(report), _answers(report), _sessions(report), *unseen, _cost(report)]


def _accuracy(report: RunReport) -> Table:
    tasks = report.tasks
    modes = list(report.loss_to_experts)
    rows = [
        [
            task.name,
            task.classes,
            task.n_test,
            _with_interval(task.zero_shot, task.zero_shot_interval),
            _with_interval(task.expert, task.expert_interval),
            *(task.fused.get(name) for name in modes),
            _with_interval(task.answered, task.answered_interval),
        ]
        for task in tasks
    ]
    means = [_mean([task.zero_shot for task in tasks]), _mean([task.expert for task in tasks])]
    means += [_mean([task.fused[name] for task in tasks]) for name in modes]
    means.append(_mean([task.answered for task in tasks]))
    rows.append(["mean", None, sum(task.n_test for task in tasks), *means])
    losses = ", ".join(f"{name} {_difference(loss)}" for name, loss in report.loss_to_experts.items())
    return table(
        "Accuracy, task known (%, 95 % intervals)",
        ["task", "classes", "test", "zero-shot", "expert", *modes, "answered"],
        rows,
        caption=f"expert and modes: by the texts alone; points lost to the experts: {losses}. "
        f"answered: by rule {report.answers.rule}",
    )


def _company(report: RunReport) -> Table:
    """What a task gets without any expert, and whether its expert is needed."""
    names = list(report.tasks[0].frozen) if report.tasks else []
    rows: list[list[Any]] = [
        [task.name, *(task.frozen[name] for name in names), task.answered, *_held_out(task.held_out)]
        for task in report.tasks
    ]
    means = [_mean([task.frozen[name] for task in report.tasks]) for name in names]
    rows.append(["mean", *means, report.answers.known, None, None])
    return table(
        "The frozen base, without experts (%), and what held-out images say of the expert",
        ["task", *names, "answered", "gain, held out", "expert"],
        rows,
        caption="answered against the discriminant of frozen features: "
        f"{_difference(report.answers.over_discriminant)} points on average. `not needed`: the expert brings less than "
        "its error bars on images that training had not seen; `method: head` would do",
    )


def _held_out(found: HeldOut | None) -> list[str]:
    if found is None:
        return ["unknown", "unknown"]
    return [_difference(found.gain), "needed" if found.needed else "not needed"]


def _answers(report: RunReport) -> Table:
    found = report.answers
    rows: list[list[Any]] = [
        ["learned, task named", f"{found.known:.1f} %"],
        ["learned, its labels given", f"{found.unknown:.1f} %"],
        ["learned, nothing given (task and class)", f"{found.seen:.1f} %"],
    ]
    for way, one in found.one_request.items():
        sets = f"{one.learned:.1f} % (base {one.learned_base:.1f})"
        if one.unseen is not None:
            sets += f"; never trained {one.unseen:.1f} % (base {one.unseen_base:.1f})"
        rows.append([f"{one.labels} labels in one request ({WAYS[way]})", sets])
    rows += [
        ["experts per image", ", ".join(f"{WAYS[way]} {number:.2f}" for way, number in found.forwards.items())],
        *(
            [f"calibration error, {WAYS[way]}", f"{one.ece:.1f} points ({one.ece_before:.1f} without temperatures)"]
            for way, one in found.calibration.items()
        ),
    ]
    if (foreign := found.abstention) is not None:
        refused = f"{foreign.refused_learned:.1f} % of learned, {foreign.refused_unseen:.1f} % of never-trained images"
        rows.append([f"unknown at a false-alarm rate of {100 * foreign.false_alarm:g} %", refused])
        curve = f"{foreign.auroc:.1f} (base's softmax {foreign.auroc_base:.1f})"
        rows.append(["AUROC, learned against never trained", curve])
    return table(f"Answers by rule {found.rule}", ["what", "figure"], rows)


def _sessions(report: RunReport) -> Table:
    names = {**METHOD_NAMES, "condu": f"condu ({report.mode['name']})"}
    found = {name: report.metrics[key] for key, name in names.items() if key in report.metrics}
    rows = [[name, metrics.transfer, metrics.avg, metrics.last] for name, metrics in found.items()]
    return table("Over all sessions (%)", ["method", "Transfer", "Avg", "Last"], rows)


def _unseen(report: RunReport) -> Table:
    rows: list[list[Any]] = [
        [
            task.name,
            task.classes,
            task.n_test,
            _with_interval(task.zero_shot, task.zero_shot_interval),
            _with_interval(task.aggregated, task.aggregated_interval),
        ]
        for task in report.unseen
    ]
    means = [_mean([task.zero_shot for task in report.unseen]), _mean([task.aggregated for task in report.unseen])]
    rows.append(["mean", None, sum(task.n_test for task in report.unseen), *means])
    return table(
        "Never trained (%)",
        ["task", "classes", "test", "zero-shot base", "base + experts"],
        rows,
        caption=f"base and experts against the base alone: {_difference(report.unseen_gain)} points on average",
    )


def _stopped(found: EarlyStop) -> str:
    return f"{found.steps}, best after {found.best_step}: {found.accuracy:.1f} % of {found.images} validation images"


def _cost(report: RunReport) -> Table:
    routing = report.routing_accuracy
    rows: list[list[Any]] = [
        ["routing accuracy, top-1", f"{routing:.1f} %" if routing is not None else None],
        *([f"the expert's answer kept, {mode}", _kept(kept)] for mode, kept in report.kept.items()),
        ["cosine to the experts' task vectors, mean", _cosine(report.fidelity)],
        ["stored per task", human_bytes(report.bytes_per_task)],
        ["stored once for all", human_bytes(report.shared_bytes)],
        ["a checkpoint per task", human_bytes(report.checkpoint_bytes)],
        *([f"steps of {task.name}", _stopped(task.early_stop)] for task in report.tasks if task.early_stop),
        *([f"time: {name}", f"{seconds:.0f} s"] for name, seconds in report.seconds.items()),
    ]
    return table("Cost", ["what", "figure"], rows)


def _kept(kept: KeptFigures | None) -> str | None:
    return f"{kept.agreement:.1f} %, KL {kept.divergence:.4f}" if kept else None


def _cosine(fidelity: Mapping[str, Fidelity]) -> str | None:
    """The mean, and the lowest with its task."""
    known = {task: found.cosine for task, found in fidelity.items() if found.cosine is not None}
    if not known:
        return None
    worst = min(known, key=lambda task: known[task])
    return f"{np.mean(list(known.values())):.3f} (lowest {known[worst]:.3f}, {worst})"


def _mean(values: Sequence[float | None]) -> float | None:
    """None where one of the values is missing: a mean over the others would be another figure."""
    given = [value for value in values if value is not None]
    return float(np.mean(given)) if len(given) == len(values) else None


def _with_interval(value: float | None, interval: Interval | None) -> str | None:
    if value is None or interval is None:
        return None
    return f"{value:.1f} ({interval[0]:.0f}–{interval[1]:.0f})"


def _difference(value: Estimate | None) -> str:
    if value is None:
        return "unknown"
    return f"{value.mean:+.1f} ({value.low:+.1f} to {value.high:+.1f})"
