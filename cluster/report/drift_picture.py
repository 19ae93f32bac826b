"""Drift as a picture: for each task, how familiar what was asked is, beside what its own images would be."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from cluster.report.pictures import png, pyplot
from fusion.answers.drift import Drift, TaskDrift

MOST_TASKS = 24
_COLUMNS = 4
_DRIFTED, _AS_TRAINED, _UNTESTED = "#b3402e", "#1f7a5c", "#9aa5b1"


def picture(drift: Drift) -> bytes:
    """PNG: the share of a task's images below each familiarity, for the tasks that are asked most.

    The diagonal is what was trained; a curve above it is of images that are less familiar.
    """
    asked = sorted((one for one in drift.tasks if one.num_images), key=lambda one: -one.num_images)[:MOST_TASKS]
    columns = min(_COLUMNS, len(asked))
    rows = math.ceil(len(asked) / columns)
    figure, axes = pyplot().subplots(rows, columns, figsize=(2.6 * columns, 2.6 * rows + 0.6), squeeze=False)
    for axis in axes.flat[len(asked) :]:
        axis.set_visible(False)
    for axis, one in zip(axes.flat, asked, strict=False):
        _draw(axis, one)
    figure.suptitle("share of images below a familiarity\n(dashed: as trained)", fontsize=10)
    figure.tight_layout()
    return png(figure)


def _draw(axis: Any, one: TaskDrift) -> None:
    colour = _UNTESTED if one.p_value is None else _DRIFTED if one.drifted else _AS_TRAINED
    familiarity, shares = _steps(one.familiarity)
    axis.plot((0, 1), (0, 1), "--", color="#5b6675", linewidth=0.8)
    axis.step(familiarity, shares, where="post", color=colour, linewidth=1.4)
    axis.set_xlim(0, 1)
    axis.set_ylim(0, 1)
    axis.set_title(f"{one.task}, {one.num_images}{', drift' if one.drifted else ''}", fontsize=9, color=colour)
    axis.tick_params(labelsize=7)
    axis.grid(alpha=0.25)


def _steps(familiarity: np.ndarray) -> tuple[Sequence[float], Sequence[float]]:
    count = len(familiarity)
    return [0.0, *familiarity.tolist(), 1.0], [0.0, *(np.arange(1, count + 1) / count).tolist(), 1.0]
