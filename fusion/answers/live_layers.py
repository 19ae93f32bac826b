"""The layers of a transformer in which every row of a batch may belong to another expert.

Each is the base's own layer and what the experts of the batch add to it: (W + u^T v) x = W x + u^T (v x).

Letters: B images or texts, L tokens, R rows and C columns of a matrix, K components.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from fusion.answers.clip import modules_copied

Factors = tuple[torch.Tensor, torch.Tensor]
"""u, [K, R], with the components' sizes in it, and v, [K, C]. float32."""
Rows = tuple[torch.Tensor, torch.Tensor]
"""Which rows of a table moved, ascending int64 [n], and by how much, float32 [n, C]."""


@dataclass(frozen=True, eq=False)
class LiveSide:
    """How one side of an expert, images or texts, differs from the base's, by tensors' names; unmoved ones are missing.

    Attributes:
        factors: of matrices.
        deltas: of what is added, in its shape.
        tables: of what is looked up.
    """

    factors: Mapping[str, Factors] = field(default_factory=dict)
    deltas: Mapping[str, torch.Tensor] = field(default_factory=dict)
    tables: Mapping[str, Rows] = field(default_factory=dict)

    def to(self, device: torch.device) -> LiveSide:
        """The same on a device."""
        factors, tables = (
            {name: (one.to(device), other.to(device)) for name, (one, other) in pairs.items()}
            for pairs in (self.factors, self.tables)
        )
        return LiveSide(factors, {name: delta.to(device) for name, delta in self.deltas.items()}, tables)

    @cached_property
    def num_bytes(self) -> int:
        pairs = [*self.factors.values(), *self.tables.values()]
        return sum(one.nbytes + other.nbytes for one, other in pairs) + sum(d.nbytes for d in self.deltas.values())


class Mix:
    """The experts of the batch that is being computed. One thread at a time."""

    def __init__(self) -> None:
        self._experts: tuple[LiveSide, ...] = ()
        self._owner_B = torch.empty(0, dtype=torch.int64)

    def set(self, owners: Sequence[LiveSide], device: torch.device) -> None:
        """Whose each image of the next batch is."""
        self._experts = tuple(dict.fromkeys(owners))
        places = {expert: place for place, expert in enumerate(self._experts)}
        self._owner_B = torch.tensor([places[owner] for owner in owners], device=device)

    def factors(self, name: str) -> Factors | None:
        """Those of every image, padded with zeros: [B, K, R] and [B, K, C]; without B where all are one expert's."""
        found = [expert.factors.get(name) for expert in self._experts]
        some = [one for one in found if one is not None]
        if not some:
            return None
        if len(found) == 1:
            return some[0]
        most = max(len(u) for u, _ in some)
        sides = []
        for side in (0, 1):
            stacked = torch.zeros(len(found), most, some[0][side].shape[1], device=some[0][side].device)
            for place, one in enumerate(found):
                if one is not None:
                    stacked[place, : len(one[side])] = one[side]
            sides.append(stacked[self._owner_B])
        return sides[0], sides[1]

    def delta(self, name: str) -> torch.Tensor | None:
        """That of every image, [B, …]; None if it is 0 for all."""
        found = [expert.deltas.get(name) for expert in self._experts]
        some = [one for one in found if one is not None]
        if not some:
            return None
        zero = torch.zeros_like(some[0])
        return torch.stack([zero if one is None else one for one in found])[self._owner_B]

    def product(self, x: torch.Tensor, name: str) -> torch.Tensor | None:
        """What the components add to x W^T, [B, L, R], of x [B, L, C]; None for nothing."""
        if (found := self.factors(name)) is None:
            return None
        u, v = found
        return (x @ v.mT) @ u


class _LiveLinear(nn.Module):
    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, mix: Mix, names: tuple[str, str]) -> None:
        super().__init__()
        self.weight, self.bias, self._mix, self._names = weight, bias, mix, names

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = F.linear(x, self.weight, self.bias)
        if (more := self._mix.product(x, self._names[0])) is not None:
            found = found + more
        if (shift := self._mix.delta(self._names[1])) is not None:
            found = found + shift[:, None]
        return found


class _LiveNorm(nn.Module):
    def __init__(self, norm: nn.LayerNorm, mix: Mix, name: str) -> None:
        super().__init__()
        self._norm, self._mix, self._name = norm, mix, name

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        norm = self._norm
        gain, shift = self._mix.delta(f"{self._name}.weight"), self._mix.delta(f"{self._name}.bias")
        if gain is None and shift is None:
            return norm(x)  # type: ignore[no-any-return]
        between = (1,) * (x.dim() - 2)
        found = F.layer_norm(x, norm.normalized_shape, None, None, norm.eps)
        gains = norm.weight if gain is None else (norm.weight + gain).reshape(len(x), *between, -1)
        shifts = norm.bias if shift is None else (norm.bias + shift).reshape(len(x), *between, -1)
        return found * gains + shifts


class _LiveAttention(nn.Module):
    def __init__(self, attention: nn.MultiheadAttention, mix: Mix, name: str) -> None:
        super().__init__()
        assert attention.in_proj_weight is not None
        self._heads = attention.num_heads
        inner, outer = (f"{name}.in_proj_weight", f"{name}.in_proj_bias"), f"{name}.out_proj"
        self._inner = _LiveLinear(attention.in_proj_weight, attention.in_proj_bias, mix, inner)
        out = attention.out_proj
        self._outer = _LiveLinear(out.weight, out.bias, mix, (f"{outer}.weight", f"{outer}.bias"))

    def forward(
        self, x: torch.Tensor, *_: Any, attn_mask: torch.Tensor | None = None, **__: Any
    ) -> tuple[torch.Tensor, None]:
        size, length, width = x.shape
        heads = self._inner(x).view(size, length, 3, self._heads, width // self._heads)
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        found = F.scaled_dot_product_attention(query, key, value, attn_mask=attn_mask)
        return self._outer(found.transpose(1, 2).reshape(size, length, width)), None


class _LivePatches(nn.Module):
    def __init__(self, conv: nn.Conv2d, mix: Mix, name: str) -> None:
        super().__init__()
        self._conv, self._mix, self._name = conv, mix, f"{name}.weight"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self._conv(x)
        patches = F.unfold(x, self._conv.kernel_size, stride=self._conv.stride).mT
        if (more := self._mix.product(patches, self._name)) is not None:
            found = found + more.mT.reshape(found.shape)
        return found


def with_live_parts(module: nn.Module, mix: Mix, name: str) -> Any:
    """A copy of the modules that shares all weights, with those replaced that an expert may change."""

    def live(part: nn.Module, at: str) -> nn.Module | None:
        if isinstance(part, nn.MultiheadAttention):
            return _LiveAttention(part, mix, at)
        if isinstance(part, nn.Linear):
            return _LiveLinear(part.weight, part.bias, mix, (f"{at}.weight", f"{at}.bias"))
        if isinstance(part, nn.LayerNorm):
            return _LiveNorm(part, mix, at)
        if isinstance(part, nn.Conv2d):
            return _LivePatches(part, mix, at)
        return None

    return modules_copied(module, live, name)
