"""Figures of continual learning, from plain arrays. Accuracies are fractions in [0, 1]; an undefined figure is NaN.

A[t, i] is the accuracy on task i after session t, counted from 0 here and from 1 in the docs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

Z_95 = 1.959963984540054
"""Standard normal quantile of a two-sided 95 % interval."""


@dataclass(frozen=True)
class Continual:
    """Transfer, Avg and Last of one matrix."""

    transfer: float
    """Mean over tasks, from the second on, of the mean accuracy before the task was learned."""
    avg: float
    """Mean over tasks of the mean accuracy over all sessions (where A is triangular: over those that have one)."""
    last: float
    """Mean accuracy after the last session."""


def continual(accuracy: np.ndarray) -> Continual:
    """Summarise A, float [T, T]. Entries above the diagonal (t < i) may be NaN: then Transfer is NaN too."""
    accuracy = np.asarray(accuracy, dtype=np.float64)
    if accuracy.ndim != 2 or accuracy.shape[0] != accuracy.shape[1] or not accuracy.size:
        raise ValueError(f"the matrix of accuracies has to be square, one session per task; it is {accuracy.shape}")
    tasks = range(len(accuracy))
    transfer = float(np.mean([accuracy[:i, i].mean() for i in tasks[1:]])) if len(accuracy) > 1 else math.nan
    return Continual(
        transfer, float(np.mean([_mean_of_known(accuracy[:, i]) for i in tasks])), float(accuracy[-1].mean())
    )


def wilson_interval(correct: int, total: int) -> tuple[float, float]:
    """95 % Wilson confidence interval of a proportion, sound for small samples and near 0 and 1. NaN if total is 0."""
    if not 0 <= correct <= total:
        raise ValueError(f"{correct} correct of {total}")
    if total == 0:
        return math.nan, math.nan
    z = Z_95
    share = correct / total
    centre = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    low = 0.0 if correct == 0 else centre - half  # exact at both ends, where rounding would just miss it
    return low, 1.0 if correct == total else centre + half


def _mean_of_known(column: np.ndarray) -> float:
    known = column[~np.isnan(column)]
    return float(known.mean()) if known.size else math.nan
