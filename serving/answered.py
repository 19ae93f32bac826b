"""What a request came to, for those who look at it once it is answered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from fusion.answers.label_spaces import Plan, Prediction
from fusion.answers.view import View


@dataclass(frozen=True)
class Answered:
    """A request's images, [B], and its answers: one for each, or one for all of them as views of one object.

    Attributes:
        crops: uint8 [B, H, W, 3].
        features: of the base, float32 [B, D]; None where it did not see them.
    """

    view: View
    plan: Plan
    crops: np.ndarray
    features: torch.Tensor | None
    predictions: Sequence[Prediction]
