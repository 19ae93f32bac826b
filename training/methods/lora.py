"""LoRA: matrices move by a product of two small factors (Hu et al. 2022, arXiv 2106.09685); everything else rests.

    W = W_0 + (alpha / rank) up down,      down [rank, in] random, up [out, rank] from 0

The factors are folded into the weights when training ends, so an expert is a full state dict like any other, whose task
vector has at most this rank in every matrix. Where several linear layers share one tensor (queries, keys and values of
an attention), the tensor counts as one matrix. Optimizer state is kept for the factors alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.utils import parametrize

from fusion.errors import ConfigError
from training.methods import Method
from training.recipe import Recipe

_MLP = "mlp"
"""What the modules of transformers' feed-forward layers have in their names, in open_clip and in timm."""


class LowRankChange(nn.Module):
    """A weight with its change. Weights of more than two dimensions are taken as [out, rest]."""

    def __init__(self, weight: torch.Tensor, rank: int, scale: float, generator: torch.Generator) -> None:
        super().__init__()
        rows, columns = weight.shape[0], weight[0].numel()
        bound = 1 / math.sqrt(columns)
        down = torch.empty(rank, columns).uniform_(-bound, bound, generator=generator)
        self.down = nn.Parameter(down.to(weight.device))
        self.up = nn.Parameter(torch.zeros(rows, rank, device=weight.device))
        self._scale = scale

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight + (self._scale * (self.up @ self.down)).reshape(weight.shape)


class Lora(Method):
    """Trains `lora_rank` components of each matrix that `lora_targets` names."""

    def __init__(self) -> None:
        self._changed: list[tuple[nn.Module, str]] = []

    def prepare(self, model: nn.Module, recipe: Recipe, generator: torch.Generator) -> None:
        scale = (recipe.lora_alpha or recipe.lora_rank) / recipe.lora_rank
        for name, module in list(model.named_modules()):
            if recipe.lora_targets == "all" or _MLP in name.split("."):
                self._changed += [(module, tensor) for tensor in _matrices(module)]
        if not self._changed:
            raise ConfigError(
                "lora_targets is 'mlp', and this base has no feed-forward layers of transformers: set lora_targets: all"
            )
        for module, tensor in self._changed:
            change = LowRankChange(module.get_parameter(tensor), recipe.lora_rank, scale, generator)
            parametrize.register_parametrization(module, tensor, change)

    def trained_parameters(self, model: nn.Module) -> dict[str, nn.Parameter]:
        factors = (".parametrizations.", (".down", ".up"))
        return {n: p for n, p in model.named_parameters() if factors[0] in f".{n}" and n.endswith(factors[1])}

    def merge(self, model: nn.Module) -> dict[str, torch.Tensor]:
        for module, tensor in self._changed:
            parametrize.remove_parametrizations(module, tensor, leave_parametrized=True)
        return super().merge(model)


def _matrices(module: nn.Module) -> Iterator[str]:
    """Names of a module's own tensors that are matrices of a linear map. Embeddings and depthwise kernels are not."""
    if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1):
        yield "weight"
    elif isinstance(module, nn.MultiheadAttention) and module.in_proj_weight is not None:
        yield "in_proj_weight"
