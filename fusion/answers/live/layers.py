"""The layers in which every row of a batch may belong to another expert.

Each is the base's own layer and what the experts of the batch add to it: (W + u^T v) x = W x + u^T (v x).

Letters: B images or texts, L tokens, R rows and C columns of a matrix, K components, D dimensions of the embedding.
"""

from __future__ import annotations

from typing import Any

import torch
from open_clip.transformer import ResidualAttentionBlock
from torch import nn
from torch.nn import functional as F

from fusion.answers.clip import modules_copied
from fusion.answers.live.mix import Mix
from fusion.checkpoints.names import of_images


class LiveLinear(nn.Module):
    """Of inputs [B, L, C] or [B, C]. `names`: of weight and bias."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, mix: Mix, names: tuple[str, str]) -> None:
        super().__init__()
        self.weight, self.bias, self._mix, self._names = weight, bias, mix, names

    @classmethod
    def of(cls, linear: nn.Linear, mix: Mix, name: str) -> LiveLinear:
        """In place of a layer, by its name."""
        return cls(linear.weight, linear.bias, mix, (f"{name}.weight", f"{name}.bias"))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows, bias, shift = x.reshape(-1, x.shape[-1]), self.bias, self._mix.delta(self._names[1])
        if shift is not None and len(shift) == 1:
            bias, shift = (shift[0] if bias is None else bias + shift[0]), None
        found = F.linear(rows, self.weight, bias)
        apart = found.view(len(x), -1, found.shape[-1])
        if (factors := self._mix.factors(self._names[0])) is not None:
            u, v = factors
            if u.dim() == 2:
                found.addmm_(rows @ v.T, u)
            else:
                apart.baddbmm_(rows.view(len(x), -1, rows.shape[-1]) @ v.mT, u)
        if shift is not None:
            apart += shift[:, None]
        return found.view(*x.shape[:-1], -1)


class LiveNorm(nn.Module):
    """A LayerNorm of inputs [B, …, C]."""

    def __init__(self, norm: nn.LayerNorm, mix: Mix, name: str) -> None:
        super().__init__()
        self._norm, self._mix, self._name = norm, mix, name

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        norm = self._norm
        gain, shift = self._mix.delta(f"{self._name}.weight"), self._mix.delta(f"{self._name}.bias")
        gains = norm.weight[None] if gain is None else norm.weight + gain
        shifts = norm.bias[None] if shift is None else norm.bias + shift
        if len(gains) == len(shifts) == 1:
            return F.layer_norm(x, norm.normalized_shape, gains[0], shifts[0], norm.eps)
        between = (1,) * (x.dim() - 2)
        found = F.layer_norm(x, norm.normalized_shape, None, None, norm.eps)
        return found * gains.reshape(len(gains), *between, -1) + shifts.reshape(len(shifts), *between, -1)


class _LiveAttention(nn.Module):
    def __init__(self, attention: nn.MultiheadAttention, mix: Mix, name: str) -> None:
        super().__init__()
        assert attention.in_proj_weight is not None
        self._heads = attention.num_heads
        inner = (f"{name}.in_proj_weight", f"{name}.in_proj_bias")
        self._inner = LiveLinear(attention.in_proj_weight, attention.in_proj_bias, mix, inner)
        self._outer = LiveLinear.of(attention.out_proj, mix, f"{name}.out_proj")

    def forward(
        self, x: torch.Tensor, *_: Any, attn_mask: torch.Tensor | None = None, **__: Any
    ) -> tuple[torch.Tensor, None]:
        size, length, width = x.shape
        heads = self._inner(x).view(size, length, 3, self._heads, width // self._heads)
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        found = F.scaled_dot_product_attention(query, key, value, attn_mask=attn_mask)
        return self._outer(found.transpose(1, 2).reshape(size, length, width)), None


class _LivePatches(nn.Module):
    """A convolution of patches that do not overlap: a matrix times each patch."""

    def __init__(self, conv: nn.Conv2d, mix: Mix, name: str) -> None:
        super().__init__()
        self._size, self._stride = conv.kernel_size, conv.stride
        self._linear = LiveLinear(conv.weight.flatten(1), conv.bias, mix, (f"{name}.weight", f"{name}.bias"))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        height, width = (1 + (n - k) // s for n, k, s in zip(x.shape[2:], self._size, self._stride, strict=True))
        patches = F.unfold(x, self._size, stride=self._stride).mT
        return self._linear(patches).mT.reshape(len(x), -1, height, width)  # type: ignore[no-any-return]


def projected(pooled: torch.Tensor, projection: torch.Tensor, mix: Mix, name: str) -> torch.Tensor:
    """pooled (P + u^T v), [B, D], of a projection P that stands behind what it is multiplied with."""
    features = pooled @ projection
    if (found := mix.factors(name)) is None:
        return features
    u, v = found
    return features + ((pooled[:, None] @ u.mT) @ v)[:, 0]


def with_live_parts(module: nn.Module, mix: Mix, name: str) -> Any:
    """A copy of the modules that shares all weights, with those replaced that an expert may change."""

    def live(part: nn.Module, at: str) -> nn.Module | None:
        if isinstance(part, nn.MultiheadAttention):
            return _LiveAttention(part, mix, at)
        if isinstance(part, nn.Linear):
            return LiveLinear.of(part, mix, at)
        if isinstance(part, nn.LayerNorm):
            return LiveNorm(part, mix, at)
        if isinstance(part, nn.Conv2d):
            return _LivePatches(part, mix, at)
        return None

    return modules_copied(module, live, name)


def is_known(tower: nn.Module, own: set[str], transformer: Any) -> bool:
    """Whether every parameter, beside a tower's `own`, is in a layer that `with_live_parts` replaces."""
    covered = {
        f"{name}.{key}"
        for name, module in tower.named_modules()
        if isinstance(module, nn.Linear | nn.LayerNorm | nn.MultiheadAttention) or name == "conv1"
        for key, _ in module.named_parameters()
    }
    parameters = {name for name, _ in tower.named_parameters() if not of_images(name)}
    blocks = all(type(block) is ResidualAttentionBlock for block in transformer.resblocks)
    return blocks and not parameters - own - covered
