"""Experts applied to the base as they are, without building their models: one forward for images of many tasks.

Where a mode keeps few components of a matrix, an expert need not be built: (W + u^T v) x = W x + u^T (v x). The
base's own products are computed once for all images of a batch, and each image's expert adds its components and its
small tensors. An expert in memory has the size of its components, megabytes, and is ready once its trigger is read.

For the image side of open_clip's `VisionTransformer`. Others are rebuilt (`live_tower` gives None).

Letters: B images, L tokens, R rows and C columns of a matrix, K components, E experts of a batch.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from torch import nn
from torch.nn import functional as F

from fusion.answers.clip import Clip, of_images
from fusion.decouple import DecoupledExpert
from fusion.modes import PartsDecoder
from fusion.task_vectors import BUFFER

_VISUAL, _POSITIONS = "visual.", "positional_embedding"
Factors = tuple[torch.Tensor, torch.Tensor]
"""u, [K, R], with the components' sizes in it, and v, [K, C]. float32."""


@dataclass(frozen=True, eq=False)
class LiveExpert:
    """How the image side of an expert differs from the base's, by the names of `visual`'s tensors; unmoved ones lack.

    Attributes:
        factors: of matrices.
        deltas: of all else, in its shape.
    """

    factors: Mapping[str, Factors]
    deltas: Mapping[str, torch.Tensor]

    def to(self, device: torch.device) -> LiveExpert:
        """The same on a device."""
        factors = {name: (u.to(device), v.to(device)) for name, (u, v) in self.factors.items()}
        return LiveExpert(factors, {name: delta.to(device) for name, delta in self.deltas.items()})

    @cached_property
    def num_bytes(self) -> int:
        return sum(u.nbytes + v.nbytes for u, v in self.factors.values()) + sum(d.nbytes for d in self.deltas.values())


def live_expert(expert: DecoupledExpert) -> LiveExpert | None:
    """The image side of a decoupled expert; None for one of a mode that has no parts, or where a
    matrix is not kept as components."""
    decoder = expert.decoder
    if not isinstance(decoder, PartsDecoder) or any(key.startswith(BUFFER + _VISUAL) for key in expert.trigger.specs):
        return None
    factors, deltas = {}, {}
    for name in filter(of_images, expert.bench.specs):
        found, own = decoder.parts(name), name.removeprefix(_VISUAL)
        if isinstance(found, tuple):
            u, v = torch.from_numpy(found[0]), torch.from_numpy(found[1])
            if own == _POSITIONS:  # added, not multiplied with
                deltas[own] = u.T @ v
            else:
                factors[own] = (u, v)
        elif found is not None:
            spec = expert.bench.specs[name]
            if len(spec.shape) > 1 and own != _POSITIONS:
                return None
            deltas[own] = torch.from_numpy(found).reshape(spec.shape)
    return LiveExpert(factors, deltas)


class Mix:
    """The experts of the batch that is being computed. One thread at a time."""

    def __init__(self) -> None:
        self._experts: tuple[LiveExpert, ...] = ()
        self._owner_B = torch.empty(0, dtype=torch.int64)

    def set(self, owners: Sequence[LiveExpert], device: torch.device) -> None:
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

    def forward(self, x: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor, None]:
        size, length, width = x.shape
        heads = self._inner(x).view(size, length, 3, self._heads, width // self._heads)
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        found = F.scaled_dot_product_attention(query, key, value)
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


class LiveTower:
    """The image side of a base, which applies an expert of its own to every image. Use `live_tower`."""

    def __init__(self, clip: Clip, mix: Mix) -> None:
        tower: Any = clip.model.visual
        self._clip, self._mix, self._projection = clip, mix, tower.proj
        self._positions: torch.Tensor = tower.positional_embedding
        self._tower = _with_live_parts(tower, mix, "")
        self._tower._parameters["proj"] = None
        del self._tower._parameters[_POSITIONS]

    @torch.inference_mode()
    def image_features(self, pixels: torch.Tensor, owners: Sequence[LiveExpert]) -> torch.Tensor:
        """Unit features, float32 [B, D] on the CPU, of preprocessed pixels [B, 3, H, W], each by its owner."""
        mix = self._mix
        mix.set(owners, self._clip.device)
        positions = mix.delta(_POSITIONS)
        positions = self._positions if positions is None else self._positions + positions
        if (first := mix.delta("class_embedding")) is not None:
            positions = positions.expand(len(pixels), -1, -1).clone()
            positions[:, 0] += first
        self._tower.positional_embedding = positions
        pooled = self._tower(pixels.to(self._clip.device))
        features = pooled @ self._projection
        if (found := mix.factors("proj")) is not None:
            u, v = found
            features = features + ((pooled[:, None] @ u.mT) @ v)[:, 0]
        return F.normalize(features, dim=-1).float().cpu()


def live_tower(clip: Clip) -> LiveTower | None:
    """The live image side of a base; None if it is no `VisionTransformer`, or has parts that are not known here."""
    tower: Any = clip.model.visual
    if not isinstance(tower, VisionTransformer) or tower.proj is None or tower.output_tokens:
        return None
    blocks = list(tower.transformer.resblocks)
    plain = tower.attn_pool is None and all(type(block) is ResidualAttentionBlock for block in blocks)
    own = {"class_embedding", _POSITIONS, "proj"}
    covered = {
        f"{name}.{key}"
        for name, module in tower.named_modules()
        if isinstance(module, nn.Linear | nn.LayerNorm | nn.MultiheadAttention) or name == "conv1"
        for key, _ in module.named_parameters()
    }
    if not plain or {name for name, _ in tower.named_parameters()} - own - covered:
        return None
    return LiveTower(clip, Mix())


def _with_live_parts(module: nn.Module, mix: Mix, name: str) -> Any:
    """A copy of the modules that shares all weights, with those replaced that an expert may change."""
    if isinstance(module, nn.MultiheadAttention):
        return _LiveAttention(module, mix, name)
    if isinstance(module, nn.Linear):
        return _LiveLinear(module.weight, module.bias, mix, (f"{name}.weight", f"{name}.bias"))
    if isinstance(module, nn.LayerNorm):
        return _LiveNorm(module, mix, name)
    if isinstance(module, nn.Conv2d):
        return _LivePatches(module, mix, name)
    found = copy.copy(module)
    found.__dict__["_parameters"] = dict(module._parameters)
    found.__dict__["_modules"] = {
        key: child and _with_live_parts(child, mix, f"{name}.{key}" if name else key)
        for key, child in module._modules.items()
    }
    return found
