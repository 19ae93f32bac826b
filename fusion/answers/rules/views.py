"""Several views of one object, answered together: photographs from around it, frames, or crops.

Views are combined either as what the rule says of each, or before that, as features. A candidate that was not among
those of a view (in `seen` only likely tasks' classes are) counts there as barely possible.

Letters: V views, C candidates, D dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.functional import normalize

from fusion.answers.rules.ranking import Opinion

_TINY = 1e-12
_BARELY = 1e-4
"""A task whose classes are not listed has less than a thousandth of the image, and its class a part of that."""


def pooled(features: torch.Tensor) -> torch.Tensor:
    """The mean of views' unit features [V, D], made unit again, [1, D]."""
    return normalize(features.mean(0, keepdim=True), dim=-1)


def together(opinions: Sequence[Opinion], how: str) -> Opinion:
    """One opinion on an object from those on its views, by `mean` or `max`. Familiarity is the mean of the views'."""
    places: dict[tuple[str | None, str], int] = {}
    for opinion in opinions:
        for one in opinion.candidates:
            places.setdefault(one, len(places))
    found = torch.full((len(opinions), len(places)), _BARELY, dtype=torch.float64)
    for row, opinion in zip(found, opinions, strict=True):
        row[[places[one] for one in opinion.candidates]] = opinion.probabilities.double().clamp(min=_TINY)
    scores = found.log().mean(0) if how == "mean" else found.amax(0).log()
    known = [opinion.familiarity for opinion in opinions if opinion.familiarity is not None]
    return Opinion(list(places), scores.softmax(0), sum(known) / len(known) if known else None)
