"""Names of methods in the picture of a comparison."""

from __future__ import annotations

from typing import Any

import pytest
from matplotlib.text import Text

from cluster.compare import Kind
from cluster.report import comparison_picture
from cluster.report.pictures import pyplot
from cluster.report.records import ComparisonReport, Estimate, MethodFigures, SizedBase


def method(title: str, kind: Kind, accuracy: float, per_task: int, total: int) -> MethodFigures:
    mean, loss = Estimate(accuracy, accuracy - 2, accuracy + 2), Estimate(0.0, 0.0, 0.0)
    return MethodFigures(title, title, kind, mean, loss, {}, None, per_task, 8 * (total - per_task), total, 1.0, None)


METHODS = (
    method("zero-shot base", "base", 36.7, 0, 0),
    method("a method at the left with a long name", "frozen base", 80.0, 13_000, 13_000),
    method("another one close to it", "frozen base", 79.0, 14_000, 14_000),
    method("condu signed, 2 bits", "condu", 87.3, 3_400_000, 15_500_000),
    method("every checkpoint, at the right", "per task", 86.8, 48_500_000, 48_500_000),
    method("a merged model near the legend", "one model", 40.0, 0, 40_000_000),
)


def test_every_name_is_inside_the_axes_and_covers_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Any] = []
    monkeypatch.setattr(comparison_picture, "png", lambda figure: figures.append(figure) or b"")
    report = ComparisonReport("file:///store", SizedBase(None, "0" * 64, 1), ("a", "b"), (), {}, METHODS)
    comparison_picture.picture(report)
    (figure,) = figures
    figure.canvas.draw()  # which places annotations
    (axis,) = figure.axes
    titles = {one.title for one in METHODS if one.kind != "base"}
    # of the letters alone: an annotation's own extent has its line in it
    names = {text.get_text(): Text.get_window_extent(text) for text in axis.texts if text.get_text() in titles}
    assert set(names) == titles
    frame, legend = axis.get_window_extent(), axis.get_legend().get_window_extent()
    for title, box in names.items():
        assert frame.x0 <= box.x0, title
        assert box.x1 <= frame.x1, title
        assert not box.overlaps(legend), title
        assert not any(box.overlaps(other) for name, other in names.items() if name != title), title
    pyplot().close(figure)
