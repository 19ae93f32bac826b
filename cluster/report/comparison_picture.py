"""The comparison as a picture: accuracy against bytes. Higher is better, further left is cheaper."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cluster.output import human_bytes
from cluster.report.pictures import png, pyplot
from cluster.report.records import ComparisonReport, MethodFigures

_COLOURS = {"frozen base": "#5b4a9c", "one model": "#7a8aa0", "per task": "#c9762b", "condu": "#1f7a5c"}
_NAMES = {
    "frozen base": "frozen base, no expert",
    "one model": "one merged model",
    "per task": "kept per task",
    "condu": "condu's modes",
}
_LETTERS, _LINE_HEIGHT, _GAP = 8.0, 10.0, 9.0
"""Of names in the picture, in points: their size, and the distance from a point to its name."""
_Box = tuple[float, float, float, float]
"""Left, bottom, right, top, in points."""


def picture(report: ComparisonReport) -> bytes:
    """PNG: mean accuracy with the task known, against stored bytes per task.

    A method's point counts what tasks share, divided by their number; where it shares something, a line reaches left to
    the cost of one more task.
    """
    figure, axis = pyplot().subplots(figsize=(9, 5.4))
    methods = [method for method in report.methods if method.total_bytes_per_task]
    for kind in _COLOURS:
        if chosen := [method for method in methods if method.kind == kind]:
            _draw_kind(axis, kind, chosen)
    for method in report.methods:
        if method.kind == "base":
            _draw_base(axis, method)
        if 0 < method.bytes_per_task < method.total_bytes_per_task:
            reach = method.bytes_per_task, method.total_bytes_per_task
            axis.plot(reach, [method.accuracy.mean] * 2, "|-", color=_COLOURS[method.kind], linewidth=0.8)
    _scale_bytes(axis, methods)
    axis.set_ylabel("accuracy, task known (%), 95 % intervals")
    axis.set_title(f"{len(report.tasks)} experts of one base, kept in different ways", fontsize=11)
    axis.grid(alpha=0.25)
    axis.legend(loc="lower right", fontsize=9)
    figure.tight_layout()
    _label(axis, methods, to_points=72 / figure.dpi)
    return png(figure)


def _draw_kind(axis: Any, kind: str, methods: Sequence[MethodFigures]) -> None:
    """Points and intervals of the methods of one kind."""
    axis.errorbar(
        [method.total_bytes_per_task for method in methods],
        [method.accuracy.mean for method in methods],
        yerr=[
            [method.accuracy.mean - method.accuracy.low for method in methods],
            [method.accuracy.high - method.accuracy.mean for method in methods],
        ],
        fmt="o",
        color=_COLOURS[kind],
        label=_NAMES[kind],
        elinewidth=1,
        alpha=0.9,
    )


def _draw_base(axis: Any, base: MethodFigures) -> None:
    """The bare base as a line: it stores nothing, so it has no place on the axis of bytes."""
    axis.axhline(base.accuracy.mean, color="#9aa5b1", linestyle="--", linewidth=1)
    axis.annotate(
        f"{base.title}, nothing stored",
        (0.01, base.accuracy.mean),
        xycoords=("axes fraction", "data"),
        xytext=(0, 3),
        textcoords="offset points",
        fontsize=8,
        color="#5b6675",
    )


def _scale_bytes(axis: Any, methods: Sequence[MethodFigures]) -> None:
    """The horizontal axis: logarithmic, with room on the right for names."""
    from matplotlib.ticker import FuncFormatter, LogLocator

    sizes = [size for method in methods for size in (method.bytes_per_task, method.total_bytes_per_task) if size]
    axis.set_xscale("log")
    axis.set_xlim(min(sizes) / 1.5, max(sizes) * 3)
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: human_bytes(value).replace(".0 ", " ")))
    axis.xaxis.set_minor_formatter(FuncFormatter(lambda value, _: ""))
    axis.set_xlabel(
        "stored per task, shared bytes divided by the number of tasks (log); lines reach to what one more task costs"
    )


def _label(axis: Any, methods: Sequence[MethodFigures], *, to_points: float) -> None:
    """Name every point beside it, inside the axes, at the nearest place where the name covers no point, line, bar,
    legend or other name.

    Args:
        to_points: from the figure's pixels to points, in which an annotation is placed.
    """

    def place(num_bytes: float, accuracy: float) -> tuple[float, float]:
        x, y = axis.transData.transform((num_bytes, accuracy))
        return float(x) * to_points, float(y) * to_points

    def extent(drawn: Any) -> _Box:
        left, bottom, right, top = (float(edge) * to_points for edge in drawn.get_window_extent().extents)
        return left, bottom, right, top

    def width_of(title: str) -> float:
        text = axis.text(0, 0, title, fontsize=_LETTERS)
        left, _, right, _ = extent(text)
        text.remove()
        return right - left

    frame, taken = extent(axis), [extent(axis.get_legend())]
    for method in methods:
        size, accuracy = method.total_bytes_per_task, method.accuracy
        x, y = place(size, accuracy.mean)
        taken.append((x - 5, y - 5, x + 5, y + 5))
        taken.append((x - 1, place(size, accuracy.low)[1], x + 1, place(size, accuracy.high)[1]))
        if method.bytes_per_task:
            taken.append((place(method.bytes_per_task, accuracy.mean)[0], y - 1, x, y + 1))
    for method in sorted(methods, key=lambda method: -method.accuracy.mean):
        point = method.total_bytes_per_task, method.accuracy.mean
        x, y = place(*point)
        width = width_of(method.title)
        boxes = [
            (left, y + shift - _LINE_HEIGHT / 2, left + width, y + shift + _LINE_HEIGHT / 2)
            for shift in sorted(range(-80, 81, 4), key=abs)
            for left in (x + _GAP, x - _GAP - width, x - width / 2)
        ]
        inside = [box for box in boxes if _holds(frame, box)] or boxes
        box = next((box for box in inside if not any(_meet(box, other) for other in taken)), inside[0])
        taken.append(box)
        across, up = (box[0] + box[2]) / 2 - x, (box[1] + box[3]) / 2 - y
        axis.annotate(
            method.title,
            point,
            xytext=(across, up),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=_LETTERS,
            arrowprops=None if abs(up) < 1 else {"arrowstyle": "-", "color": "#9aa5b1", "linewidth": 0.6},
        )


def _holds(outer: _Box, inner: _Box) -> bool:
    return outer[0] <= inner[0] and outer[1] <= inner[1] and inner[2] <= outer[2] and inner[3] <= outer[3]


def _meet(first: _Box, second: _Box) -> bool:
    return first[0] < second[2] and second[0] < first[2] and first[1] < second[3] and second[1] < first[3]
