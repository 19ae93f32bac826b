"""The weights of models, for tests that compare them."""

from __future__ import annotations

import torch

from fusion.answers.clip import Clip


def tensors_of(clip: Clip) -> dict[str, torch.Tensor]:
    """A copy of every tensor, by name."""
    return {name: tensor.clone() for name, tensor in clip.model.state_dict().items()}
