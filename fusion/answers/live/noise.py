"""Experts of noise, by which a tower is checked and timed before any expert is read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from fusion.answers.clip import Clip
from fusion.answers.live.sides import POSITIONS, LiveSide


def noise_side(clip: Clip, *, num_components: int, seed: int = 0) -> LiveSide:
    """An image side that moves every parameter of the base's by about a tenth, matrices along a few components."""
    noise = torch.Generator().manual_seed(seed)
    tower: Any = clip.model.visual
    factors, deltas = {}, {}
    for name, value in tower.named_parameters():
        size = 0.1 * float(value.detach().abs().mean())
        if value.dim() < 2 or name.endswith(POSITIONS):
            deltas[name] = size * torch.randn(value.shape, generator=noise)
        else:
            rows, columns = len(value), value[0].numel()
            most = min(num_components, rows, columns)
            u, v = torch.randn(most, rows, generator=noise), torch.randn(most, columns, generator=noise)
            factors[name] = (u * (size / most**0.5), v)
    return LiveSide(factors, deltas)


def moved_tensors(clip: Clip, side: LiveSide) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of a side's own model, by their names in the whole one. The side is not prepared."""
    tower: Any = clip.model.visual
    for name, value in tower.named_parameters():
        if name in side.factors:
            u, v = side.factors[name]
            yield f"visual.{name}", value.cpu() + (u.T @ v).view(value.shape)
        elif name in side.deltas:
            yield f"visual.{name}", value.cpu() + side.deltas[name]
