"""Accuracies and their intervals, from right answers. Intervals are 95 %: Wilson's for one accuracy, paired over images
for a difference."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from cluster.report.records import Estimate, Interval
from training.metrics import Z_95, wilson_interval


def paired(pairs: Sequence[tuple[np.ndarray | None, np.ndarray | None]]) -> Estimate | None:
    """Mean over sets of the difference in accuracy, percentage points, with its 95 % interval, paired over images.

    Args:
        pairs: right answers of two methods on the same images, bool [N] each; pairs with a None are left out.
    Returns: None where no pair is left.
    """
    differences = [
        first.astype(float) - second.astype(float)
        for first, second in pairs
        if first is not None and second is not None
    ]
    if not differences:
        return None
    mean = float(np.mean([d.mean() for d in differences]))
    spread = Z_95 * math.sqrt(sum(d.var() / d.size for d in differences)) / len(differences)
    return Estimate(mean=100 * mean, low=100 * (mean - spread), high=100 * (mean + spread))


def percent(right: np.ndarray) -> float:
    """Accuracy in percent, from right answers, bool [N]."""
    return 100 * float(right.mean())


def interval(right: np.ndarray) -> Interval:
    """95 % interval of an accuracy in percent, from right answers, bool [N]."""
    low, high = wilson_interval(int(right.sum()), right.size)
    return 100 * low, 100 * high
