"""A toy training method: a low-rank change of the visual projection, kept apart from the base until it is merged."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils import parametrize

from training.methods import Method
from training.recipe import Recipe

RANK = 2


class LowRankChange(nn.Module):
    """W + down @ up, where `up` starts at 0."""

    def __init__(self, weight: torch.Tensor, generator: torch.Generator) -> None:
        super().__init__()
        rows, columns = weight.shape
        self.down = nn.Parameter(torch.randn(rows, RANK, generator=generator))
        self.up = nn.Parameter(torch.zeros(RANK, columns))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight + self.down @ self.up


class Projection(Method):
    def prepare(self, model: nn.Module, recipe: Recipe, generator: torch.Generator) -> None:
        visual = model.get_submodule("visual")
        change = LowRankChange(visual.get_parameter("proj"), generator)
        parametrize.register_parametrization(visual, "proj", change)

    def trained_parameters(self, model: nn.Module) -> dict[str, nn.Parameter]:
        return {name: parameter for name, parameter in model.named_parameters() if name.endswith((".down", ".up"))}

    def merge(self, model: nn.Module) -> dict[str, torch.Tensor]:
        parametrize.remove_parametrizations(model.get_submodule("visual"), "proj", leave_parametrized=True)
        return super().merge(model)
