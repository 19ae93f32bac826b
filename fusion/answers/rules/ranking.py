"""From probabilities of candidates to a prediction."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fusion.answers.label_spaces import Prediction

_NUM_TOP = 5


def ranked(
    candidates: Sequence[tuple[str | None, str]],
    probabilities: torch.Tensor,
    experts: tuple[str, ...],
    *,
    rule: str | None = None,
    familiarity: float | None = None,
) -> Prediction:
    """The prediction for one image.

    Args:
        candidates: (task or None, label) of each.
        probabilities: of the candidates, [C].
        experts: those consulted.
    """
    best = probabilities.topk(min(_NUM_TOP, len(candidates)))
    top = tuple((*candidates[i], p) for p, i in zip(best.values.tolist(), best.indices.tolist(), strict=True))
    task, label, probability = top[0]
    return Prediction(label, task, probability, experts, top, rule, familiarity)
