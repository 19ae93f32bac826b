"""How much of an expert a decoupled expert keeps, told by their answers on the same images.

Accuracy is noisy and may rise by chance; these two compare answer with answer, and need no labels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.functional import kl_div


@dataclass(frozen=True)
class Kept:
    """What is kept, mean over images.

    Attributes:
        agreement: share of images that both give to the same class.
        divergence: KL(expert || decoupled) of their probabilities, nats.
    """

    agreement: float
    divergence: float


def kept(expert: torch.Tensor, decoupled: torch.Tensor) -> Kept:
    """Compare logits of the same images, float32 [N, C] each, N > 0."""
    same = expert.argmax(1) == decoupled.argmax(1)
    logs = decoupled.double().log_softmax(1), expert.double().log_softmax(1)
    return Kept(float(same.double().mean()), float(kl_div(*logs, log_target=True, reduction="batchmean")))
