"""Drift: whether the images that are asked about look like those that a task was trained on.

An image's familiarity to a task is a conformal p-value: the share of the task's held-out distances that are at least as
large as its own. Where images come from what the task was trained on, it is uniform. Whether they do is a two-sample
Kolmogorov-Smirnov test of the distances: those that were asked against those that were held out, so that a task of few
training images is not blamed for what few images leave open.

The test is one-sided: it asks whether images are *less* familiar. The held-out distances come from a fifth fewer images
than the task's discriminant, so its own images look a little too familiar to it, and a two-sided test would call that
drift (docs/method.md, "Drift").

Letters: N images, T tasks, D dimensions of the embedding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from fusion.answers.evidence import MAX_HELD_OUT, Evidence
from fusion.answers.router import FALSE_ALARM, Router

FEWEST_IMAGES = 20
"""With fewer, a task is not judged."""
_LIKELY_TASKS = 5
_AT_ONCE = 2048


@dataclass(frozen=True)
class Thresholds:
    """When a task has drifted: its images are less familiar than chance explains, and by enough to matter.

    Attributes:
        alpha: how often some task is called drifted though none is, at most.
        min_shift: least largest difference between the two distributions, 0 to 1. Keeps a large log from calling what
            hardly differs.
    """

    alpha: float = 0.01
    min_shift: float = 0.1


@dataclass(frozen=True)
class TaskDrift:
    """What was asked of one task.

    Attributes:
        num_images: that were asked about.
        num_named: of those, how many named the task.
        familiarity: of the images, ascending, float64 [num_images].
        unfamiliar: share of them below 0.05, where 0.05 would be.
        shift: largest excess of unfamiliar images, max over x of P(p <= x) - x, 0 to 1.
        p_value: of the test, times the number of tasks tested (Holm); None where there were too few images.
        drifted: by the thresholds.
    """

    task: str
    num_images: int
    num_named: int
    familiarity: np.ndarray = field(repr=False)
    unfamiliar: float
    shift: float
    p_value: float | None
    drifted: bool


@dataclass(frozen=True)
class Drift:
    """What was asked of all tasks.

    Attributes:
        num_images: that were asked about.
        num_of_no_task: of those, how many were asked with labels that no task was taught, or named a task that is not
            there: they belong to no task, and only `no_known_task` tells of them.
        no_known_task: share of all images that are below 0.05 for every task that they could be from.
        tasks: in the order of the router's.
    """

    num_images: int
    num_of_no_task: int
    no_known_task: float
    tasks: tuple[TaskDrift, ...]

    @property
    def drifted(self) -> bool:
        return any(one.drifted for one in self.tasks)


def measure_drift(
    router: Router,
    features: torch.Tensor,
    among: Sequence[Sequence[str] | None],
    named: Sequence[bool],
    thresholds: Thresholds,
) -> Drift:
    """What was asked, against what the router's tasks were trained on.

    Args:
        features: unit features of the base, [N, D].
        among: of each image, the tasks that it was asked of: one that was named, those whose labels were given, None:
            any.
        named: whether the task was named.
    """
    owners = np.concatenate(
        [
            _owners(router, features[start : start + _AT_ONCE].double(), among[start : start + _AT_ONCE])
            for start in range(0, len(features), _AT_ONCE)
        ]
        or [np.empty(0, int)]
    )
    familiarity = np.zeros(len(features))
    by_name = np.asarray(named, bool)
    asked_of = [np.flatnonzero(owners == place) for place in range(len(router.tasks))]
    tests = []
    for task, own in zip(router.tasks, asked_of, strict=True):
        familiarity[own] = router.p_values(features[own].double(), task).numpy()
        tests.append(_test(router, task, familiarity[own]))
    corrected = holm([p_value for _, p_value in tests])
    tasks = []
    for task, own, (shift, _), p_value in zip(router.tasks, asked_of, tests, corrected, strict=True):
        tasks.append(
            TaskDrift(
                task=task,
                num_images=len(own),
                num_named=int(by_name[own].sum()),
                familiarity=np.sort(familiarity[own]),
                unfamiliar=float((familiarity[own] < FALSE_ALARM).mean()) if len(own) else 0.0,
                shift=shift,
                p_value=p_value,
                drifted=p_value is not None and p_value < thresholds.alpha and shift >= thresholds.min_shift,
            )
        )
    unknown = np.flatnonzero(familiarity < FALSE_ALARM)
    num_unknown = len(unknown) - _num_familiar(router, features[unknown].double())
    share = num_unknown / len(features) if len(features) else 0.0
    return Drift(len(features), int((owners < 0).sum()), share, tuple(tasks))


def kolmogorov_smirnov(reference: np.ndarray, sample: np.ndarray, *, num_reference: int) -> tuple[float, float]:
    """One-sided two-sample test of whether `sample` is stochastically larger: the statistic, and its p-value.

    D+ = max over x of F_reference(x) - F_sample(x). Its p-value is Smirnov's limit, exp(-2 D+^2 n m / (n + m)), which
    for small samples errs towards no alarm.

    Args:
        reference, sample: at least one value each.
        num_reference: how many values `reference` stands for, if some were left out evenly.
    """
    ordered, values = np.sort(sample), np.sort(reference)
    # F_reference - F_sample can only be largest just before a value of the sample
    below = np.searchsorted(values, ordered, side="left") / len(values)
    statistic = max(0.0, float((below - np.arange(len(ordered)) / len(ordered)).max()))
    size = num_reference * len(sample) / (num_reference + len(sample))
    return statistic, math.exp(-2 * size * statistic**2)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """P-values times how many tests there are left, so that alpha holds for all together; None is no test."""
    tested = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p_value, place) in enumerate(tested):
        largest = max(largest, min(1.0, p_value * (len(tested) - rank)))
        corrected[place] = largest
    return corrected


def _owners(router: Router, features: torch.Tensor, among: Sequence[Sequence[str] | None]) -> np.ndarray:
    """The likeliest task of those that each image was asked of, as its place in the router; -1: there is none."""
    likelihoods = router.log_likelihoods(features).numpy()
    places = {task: place for place, task in enumerate(router.tasks)}
    owners = likelihoods.argmax(1)
    for image, tasks in enumerate(among):
        if tasks is not None:
            allowed = [places[task] for task in tasks if task in places]
            owners[image] = max(allowed, key=lambda place: likelihoods[image, place], default=-1)
    return owners


def _test(router: Router, task: str, familiarity: np.ndarray) -> tuple[float, float | None]:
    """The test's statistic and p-value. Familiarity tells the order of distances among those held out, which is all
    that the test needs."""
    evidence = router.evidence(task)
    num_held_out = len(evidence.held_out)
    if not num_held_out or not len(familiarity):
        return 0.0, None
    ranks = np.rint((1 - familiarity) * num_held_out)  # how many held-out distances are smaller
    shift, p_value = kolmogorov_smirnov(np.arange(num_held_out), ranks, num_reference=_num_measured(evidence))
    return shift, p_value if len(familiarity) >= FEWEST_IMAGES else None


def _num_measured(evidence: Evidence) -> int:
    """How many images the held-out distances stand for."""
    kept = len(evidence.held_out)
    return kept if kept < MAX_HELD_OUT else max(kept, int(evidence.base.counts.sum()))


def _num_familiar(router: Router, features: torch.Tensor) -> int:
    """How many images are familiar to one of their likeliest tasks."""
    if not len(features):
        return 0
    best = np.zeros(len(features))
    likeliest = router.log_likelihoods(features).topk(min(_LIKELY_TASKS, len(router.tasks))).indices.numpy()
    for place, task in enumerate(router.tasks):
        own = np.flatnonzero((likeliest == place).any(1))
        if len(own):
            best[own] = np.maximum(best[own], router.p_values(features[own], task).numpy())
    return int((best >= FALSE_ALARM).sum())
