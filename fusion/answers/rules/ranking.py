"""From probabilities of candidates to a prediction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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
    abstain: float | None = None,
    matched: Mapping[str, Mapping[str, str]] | None = None,
) -> Prediction:
    """The prediction for one image.

    Args:
        candidates: (task or None, label) of each.
        probabilities: of the candidates, [C].
        experts: those consulted.
        abstain: the answer is "unknown" where the familiarity is below this.
    """
    best = probabilities.topk(min(_NUM_TOP, len(candidates)))
    top = tuple((*candidates[i], p) for p, i in zip(best.values.tolist(), best.indices.tolist(), strict=True))
    task, label, probability = top[0]
    unknown = None if abstain is None or familiarity is None else familiarity < abstain
    return Prediction(
        label=None if unknown else label,
        task=None if unknown else task,
        probability=probability,
        experts=experts,
        top=top,
        rule=rule,
        familiarity=familiarity,
        unknown=unknown,
        matched=matched or {},
    )
