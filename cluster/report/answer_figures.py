"""Figures of how a version answers, from what was measured on its learned and never-trained test sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from cluster.measure import MeasuredSet
from cluster.report.estimates import paired, percent
from cluster.report.records import (
    Abstention,
    Answers,
    Calibration,
    CalibrationBin,
    EarlyStop,
    Estimate,
    HeldOut,
    OneRequest,
)
from training.answer_measure import ALL_LEARNED, EVERYTHING, LABELS, SEEN, TASK, Asked
from training.frozen import DISCRIMINANT
from training.held_out import HeldOutFigures
from training.validation import ValidationFigures

NUM_BINS = 15
FALSE_ALARM = 0.05
"""The rate at which abstention is reported, where the configuration names none."""


def answer_figures(
    rule: str,
    trained: Sequence[MeasuredSet],
    unseen: Sequence[MeasuredSet],
    *,
    false_alarm: float | None,
    num_labels: Mapping[str, int],
) -> Answers:
    """How a version answers.

    Args:
        rule: the configured one.
        false_alarm: the configured one; None: `FALSE_ALARM`.
        num_labels: how many labels `all_learned` and `everything` ask.
    """
    ways = [way for way in (TASK, LABELS, SEEN, EVERYTHING) if all(way in item.answers.asked for item in trained)]
    return Answers(
        rule=rule,
        known=_mean(trained, TASK),
        unknown=_mean(trained, LABELS),
        seen=_mean(trained, SEEN),
        over_experts=paired([(item.answers.asked[TASK].right, item.expert) for item in trained]),
        over_discriminant=paired([(item.answers.asked[TASK].right, item.frozen.get(DISCRIMINANT)) for item in trained]),
        forwards={way: float(np.mean([item.answers.asked[way].forwards.mean() for item in trained])) for way in ways},
        one_request={way: _one_request(way, num_labels[way], trained, unseen) for way in (ALL_LEARNED, EVERYTHING)},
        calibration={way: calibration([item.answers.asked[way] for item in trained]) for way in (TASK, LABELS, SEEN)},
        abstention=_abstention(trained, unseen, false_alarm or FALSE_ALARM),
    )


def held_out(metrics: Mapping[str, float]) -> HeldOut | None:
    """What an expert's record says of held-out images."""
    found = HeldOutFigures.from_metrics(metrics)
    if found is None:
        return None
    gain, error = 100 * found.gain, 100 * found.error
    return HeldOut(
        images=int(found.num_images),
        expert=100 * found.expert,
        head=100 * found.head,
        gain=Estimate(mean=gain, low=gain - error, high=gain + error),
        needed=found.needed,
    )


def early_stop(metrics: Mapping[str, float]) -> EarlyStop | None:
    """What an expert's record says of validation."""
    found = ValidationFigures.from_metrics(metrics)
    if found is None:
        return None
    return EarlyStop(int(metrics["steps"]), int(found.best_step), int(found.num_images), 100 * found.accuracy)


def calibration(asked: Sequence[Asked]) -> Calibration:
    """Expected calibration error over all images of some sets, with and without temperatures, and the bins."""
    right = np.concatenate([one.right for one in asked])
    confidence = np.concatenate([one.confidence for one in asked])
    bins = calibration_bins(right, confidence)
    before = calibration_bins(right, np.concatenate([one.uncalibrated for one in asked]))
    return Calibration(ece=_error(bins), ece_before=_error(before), bins=bins)


def calibration_bins(right: np.ndarray, confidence: np.ndarray) -> tuple[CalibrationBin, ...]:
    """Right answers, bool [N], and their probabilities [N] in equal bins of probability. Empty ones are left out."""
    place = np.minimum((confidence * NUM_BINS).astype(int), NUM_BINS - 1)
    chosen = [place == k for k in range(NUM_BINS)]
    return tuple(
        CalibrationBin(int(own.sum()), 100 * float(confidence[own].mean()), 100 * float(right[own].mean()))
        for own in chosen
        if own.any()
    )


def auroc(usual: np.ndarray, foreign: np.ndarray) -> float:
    """Probability that a usual image scores above a foreign one, ties counting half, in percent."""
    ordered = np.sort(foreign)
    below, up_to = (np.searchsorted(ordered, usual, side=side) for side in ("left", "right"))
    return 100 * float((below + up_to).mean() / (2 * len(foreign)))


def _error(bins: Sequence[CalibrationBin]) -> float:
    total = sum(one.count for one in bins)
    return sum(one.count * abs(one.confidence - one.accuracy) for one in bins) / max(total, 1)


def _mean(sets: Sequence[MeasuredSet], way: str) -> float:
    return float(np.mean([percent(item.answers.asked[way].right) for item in sets]))


def _one_request(
    way: str, num_labels: int, trained: Sequence[MeasuredSet], unseen: Sequence[MeasuredSet]
) -> OneRequest:
    def base(sets: Sequence[MeasuredSet]) -> float:
        found = [item.answers.asked[way].base for item in sets]
        return float(np.mean([percent(right) for right in found if right is not None]))

    asked_there = bool(unseen) and all(way in item.answers.asked for item in unseen)
    return OneRequest(
        labels=num_labels,
        learned=_mean(trained, way),
        learned_base=base(trained),
        unseen=_mean(unseen, way) if asked_there else None,
        unseen_base=base(unseen) if asked_there else None,
    )


def _abstention(trained: Sequence[MeasuredSet], unseen: Sequence[MeasuredSet], false_alarm: float) -> Abstention | None:
    usual = [item.answers.familiarity for item in trained if item.answers.familiarity is not None]
    foreign = {item.sessions.name: item.answers.familiarity for item in unseen}
    known = {name: found for name, found in foreign.items() if found is not None}
    if not usual or not known:
        return None
    refused = {name: percent(found < false_alarm) for name, found in known.items()}
    return Abstention(
        false_alarm=false_alarm,
        refused_learned=float(np.mean([percent(found < false_alarm) for found in usual])),
        refused_unseen=float(np.mean(list(refused.values()))),
        refused_unseen_by_set=refused,
        auroc=auroc(np.concatenate(usual), np.concatenate(list(known.values()))),
        auroc_base=auroc(
            np.concatenate([item.answers.base_confidence for item in trained]),
            np.concatenate([item.answers.base_confidence for item in unseen]),
        ),
    )
