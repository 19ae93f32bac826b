"""Which unlabelled images to label next: those that tell most about the images that nobody is sure of.

After *Active Learning for Vision-Language Models* (arXiv 2410.22187): the calibrated entropy of the current answer,
together with that of an image's neighbours. Here the two are one objective. A labelled image speaks for those that look
like it, so a choice S of images is worth

    sum_j w_j max_{i in S or labelled} k(i, j),   k(i, j) = max(0, cos(f_i, f_j))^3,   w_j = (1 + h_j) / 2,

f_i being the base's features less their mean, and h_j the entropy of the answer for image j in [0, 1] (1 for all where
no answer can be trusted). It is submodular, so choosing greedily is within 1 - 1/e of the best choice (Nemhauser et al.
1978). An image that only looks odd speaks for nobody, and is left alone; of many that look alike one is chosen.

Letters: N unlabelled images, M labelled ones, C classes, D dimensions.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass

import torch
from torch.nn.functional import normalize

from fusion.answers.class_sums import Discriminant, sum_classes
from training.held_out import head_temperature

_POWER = 3
"""Of the cosine in k. Chosen, like the weights, on the demo's tasks (docs/method.md)."""
_ROWS = 1024
"""Images that are compared with all others at a time."""


@dataclass(frozen=True)
class Pick:
    """One image to label.

    Attributes:
        index: of the image.
        gain: what it adds to the objective: for how many images it speaks that no earlier one does.
    """

    index: int
    gain: float


def entropy(probabilities: torch.Tensor) -> torch.Tensor:
    """Of answers [N, C], as a share of log C: 0 is sure, 1 is a guess. 0 for a single class. [N]"""
    if probabilities.shape[1] < 2:
        return torch.zeros(len(probabilities), dtype=probabilities.dtype)
    return torch.special.entr(probabilities).sum(1) / math.log(probabilities.shape[1])


def answer_by_labelled(
    features: torch.Tensor, labelled: torch.Tensor, labels: torch.Tensor, num_classes: int
) -> torch.Tensor:
    """Calibrated probabilities by the discriminant of the labelled images, float64 [N, C].

    Args:
        features, labelled: unit features of the base, float32 [N, D] and [M, D].
        labels: int64 [M].
    """
    scores = Discriminant(sum_classes(labelled, labels, num_classes)).scores(features)
    return (scores / head_temperature(labelled, labels, num_classes)).softmax(1)


def select(
    features: torch.Tensor,
    budget: int,
    *,
    uncertainty: torch.Tensor | None = None,
    labelled: torch.Tensor | None = None,
) -> list[Pick]:
    """Choose images to label, the most telling first; fewer than `budget` if there are not as many.

    Args:
        features: unit features of the base, float32 [N, D].
        uncertainty: calibrated entropies, [N], in [0, 1]; None: no answer can be trusted, so all count alike.
        labelled: unit features of images that have labels already, float32 [M, D].
    """
    weights = torch.ones(len(features)) if uncertainty is None else (1 + uncertainty.float().clamp(0, 1)) / 2
    mean = features.mean(0)
    unit = normalize(features - mean, dim=1)
    spoken_for = torch.zeros(len(features))
    if labelled is not None:
        for some in normalize(labelled - mean, dim=1).split(_ROWS):
            spoken_for = torch.maximum(spoken_for, _alike(some, unit).amax(0))

    def gains(some: torch.Tensor) -> list[float]:
        found: list[float] = ((_alike(some, unit) - spoken_for).clamp(min=0) @ weights).tolist()
        return found

    # gains only fall as images are chosen, so who leads with a fresh one has the largest (Minoux 1978)
    upper = [gain for some in unit.split(_ROWS) for gain in gains(some)]
    queue = [(-gain, index, 0) for index, gain in enumerate(upper)]
    heapq.heapify(queue)
    picks: list[Pick] = []
    while queue and len(picks) < budget:
        gain, index, known_at = heapq.heappop(queue)
        if known_at < len(picks):
            heapq.heappush(queue, (-gains(unit[index : index + 1])[0], index, len(picks)))
            continue
        picks.append(Pick(index, -gain))
        spoken_for = torch.maximum(spoken_for, _alike(unit[index : index + 1], unit)[0])
    return picks


def _alike(some: torch.Tensor, unit: torch.Tensor) -> torch.Tensor:
    """k of rows [B, D] and [N, D], float32 [B, N]."""
    return (some @ unit.T).clamp_(min=0).pow_(_POWER)
