"""From what a rule says of an image to a prediction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from fusion.answers.label_spaces import Plan, Prediction

_NUM_TOP = 5


class Opinion(NamedTuple):
    """What a rule says of one image.

    Attributes:
        candidates: (task or None, label) of each.
        probabilities: of the candidates, [C].
        familiarity: see `Prediction`; None where the rule can't tell.
    """

    candidates: Sequence[tuple[str | None, str]]
    probabilities: torch.Tensor
    familiarity: float | None = None


def ranked(opinion: Opinion, plan: Plan, experts: tuple[str, ...], *, forwards: int | None = None) -> Prediction:
    """The prediction: the likeliest candidates, or "unknown" where the query asks for that.

    Args:
        experts: those consulted, nearest first.
        forwards: of experts; None: one each.
    """
    candidates, probabilities, familiarity = opinion
    best = probabilities.topk(min(_NUM_TOP, len(candidates)))
    top = tuple((*candidates[i], p) for p, i in zip(best.values.tolist(), best.indices.tolist(), strict=True))
    task, label, probability = top[0]
    abstain = plan.query.abstain
    unknown = None if abstain is None or familiarity is None else familiarity < abstain
    return Prediction(
        label=None if unknown else label,
        task=None if unknown else task,
        probability=probability,
        experts=experts,
        forwards=len(experts) if forwards is None else forwards,
        top=top,
        rule=plan.rule.name if plan.rule else None,
        familiarity=familiarity,
        unknown=unknown,
        matched=plan.matched,
        warnings=plan.warnings,
    )
