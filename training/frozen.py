"""What the frozen base gets on a task without any expert: what a sensible user would try first.

Letters: N training images, M test images, C classes, D dimensions of the embedding.
"""

from __future__ import annotations

import numpy as np
import torch
from torch.nn.functional import cross_entropy, normalize

from fusion.answers.class_sums import Discriminant, sum_classes
from training.held_out import held_out_images

DISCRIMINANT, LINEAR_PROBE, NEAREST_MEAN = "discriminant", "linear-probe", "nearest-mean"
FROZEN = (DISCRIMINANT, LINEAR_PROBE, NEAREST_MEAN)
"""Linear discriminant with one covariance for all classes; logistic regression; the class whose mean is nearest."""

_STRENGTHS = tuple(10.0**power for power in range(-6, 1))
_SCALE = 10.0
"""Unit features are this much longer before the regression, so that its weights need not grow so far."""


def frozen_right(
    name: str,
    features: torch.Tensor,
    labels: torch.Tensor,
    tests: torch.Tensor,
    truth: torch.Tensor,
    num_classes: int,
) -> np.ndarray:
    """Right answers of one of `FROZEN` on test images, bool [M].

    Args:
        features, labels: unit base features of the training images, float32 [N, D], and int64 [N].
        tests, truth: likewise of the test images, [M, D] and [M].
    """
    if name == LINEAR_PROBE:
        weights, offsets = linear_probe(features, labels, num_classes)
        scores = tests @ weights.T + offsets
    else:
        sums = sum_classes(features, labels, num_classes)
        means = normalize(sums.means, dim=1)
        scores = Discriminant(sums).scores(tests) if name == DISCRIMINANT else tests @ means.T
    return (scores.argmax(1) == truth).numpy()


def linear_probe(features: torch.Tensor, labels: torch.Tensor, num_classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Multinomial logistic regression: weights float32 [C, D] and offsets [C].

    The strength of the penalty is the one that does best on a fifth of each class's images; then all images count.
    """
    out = held_out_images(labels)
    best = _STRENGTHS[len(_STRENGTHS) // 2]
    if out.any() and not out.all():

        def loss(strength: float) -> float:
            weights, offsets = _regress(features[~out], labels[~out], num_classes, strength)
            return float(cross_entropy(features[out] @ weights.T + offsets, labels[out]))

        best = min(_STRENGTHS, key=loss)
    return _regress(features, labels, num_classes, best)


@torch.enable_grad()
def _regress(
    features: torch.Tensor, labels: torch.Tensor, num_classes: int, strength: float
) -> tuple[torch.Tensor, torch.Tensor]:
    scaled = _SCALE * features
    weights = torch.zeros(num_classes, features.shape[1], requires_grad=True)
    offsets = torch.zeros(num_classes, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights, offsets], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = cross_entropy(scaled @ weights.T + offsets, labels) + strength * weights.square().sum() / 2
        loss.backward()
        return loss

    optimizer.step(closure)
    return _SCALE * weights.detach(), offsets.detach()
