"""Layers of a convolutional network in which every image of a batch may belong to another expert.

A convolution and the BatchNorm behind it are scale ((W + u^T v) x) + shift for an expert. Where images are small beside
a layer's matrix, W x is computed once for the batch, and each expert's components, scales and shifts follow for its own
images. Where they are large, as in the first layers, putting an expert's own kernel together takes less than applying
its components does, so its images are convolved with that.

Letters: B images, R channels that come out of a layer, C numbers of an input that make up one of them, K components.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from open_clip.modified_resnet import AttentionPool2d
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from fusion.answers.folding import NORM_TENSORS, affine
from fusion.answers.live.layers import LiveLinear
from fusion.answers.live.mix import Mix
from fusion.answers.live.sides import POSITIONS, Channels, LiveSide

_FEW_NUMBERS = 4096
"""A kernel of at most so many numbers is kept whole for every expert."""

_Parts = Sequence[tuple[int, int, Channels]]
"""First image, behind the last, and their expert's."""


def is_pointwise(conv: nn.Conv2d) -> bool:
    return (
        type(conv) is nn.Conv2d
        and conv.kernel_size == conv.stride == (1, 1)
        and conv.padding == (0, 0)
        and conv.groups == 1
    )


class LiveConvolution(nn.Module):
    """A convolution and the BatchNorm behind it, if there is one, but for that one's activation.

    Attributes:
        name: of the layer.
        tensors: names of what an expert may change in it.
    """

    def __init__(self, conv: nn.Conv2d, name: str, norm: _BatchNorm | None, norm_name: str | None, mix: Mix) -> None:
        super().__init__()
        self.name = name
        self._weight_name, self._bias_name = f"{name}.weight", f"{name}.bias"
        self._of_norm = {} if norm is None else {key: f"{norm_name}.{key}" for key in NORM_TENSORS}
        self.tensors = frozenset((self._weight_name, self._bias_name, *self._of_norm.values()))
        self._weight, self._bias, self._norm, self._mix = conv.weight, conv.bias, norm, mix
        self._convolve = copy.copy(conv)  # with the kernel that it is given: timm's pad in ways of their own
        self._convolve._parameters = {}
        self._whole = conv.groups > 1 or conv.weight.numel() <= _FEW_NUMBERS
        rows, columns = len(conv.weight), conv.weight[0].numel()
        self._worth = rows * columns / (rows + columns)
        self._stride = conv.stride

    def channels(self, side: LiveSide) -> Channels:
        """What an expert makes of the layer."""
        own = {}
        for key, name in self._of_norm.items():
            if name in side.statistics:
                own[key] = side.statistics[name]
            elif name in side.deltas:
                own[key] = getattr(self._norm, key) + side.deltas[name]
        bias = self._bias
        if bias is not None and self._bias_name in side.deltas:
            bias = bias + side.deltas[self._bias_name]
        scale, shift = affine(bias, self._norm, own, like=self._weight)
        found, delta = side.factors.get(self._weight_name), side.deltas.get(self._weight_name)
        factors = None if found is None else (found[0] * scale, found[1])
        if not self._whole and delta is None:
            return Channels(scale, shift, factors)
        kernel = self._kernel(Channels(scale, shift, factors))
        return Channels(scale, shift, None, kernel if delta is None else kernel + delta * scale[:, None, None, None])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = [(first, last, side.channels[self.name]) for first, last, side in self._mix.parts]
        positions = len(x) / len(parts) * x.shape[2] * x.shape[3] / (self._stride[0] * self._stride[1])
        if positions > self._worth or any(part.kernel is not None for _, _, part in parts):
            return self._apart(x, parts)
        return self._together(x, parts)

    def _apart(self, x: torch.Tensor, parts: _Parts) -> torch.Tensor:
        """Every expert's images by its own kernel."""
        found = [self._run(x[first:last], self._kernel(part), part.shift) for first, last, part in parts]
        return found[0] if len(found) == 1 else torch.cat(found)

    def _together(self, x: torch.Tensor, parts: _Parts) -> torch.Tensor:
        """W x of all images, and then what each expert does to it."""
        y = self._run(x, self._weight, None)
        scale, shift = self._scales_and_shifts(parts)
        torch.addcmul(shift[:, :, None, None], y, scale[:, :, None, None], out=y)
        for first, last, part in parts:
            if part.factors is not None:
                u, v = part.factors
                inner = self._run(x[first:last], v.view(-1, *self._weight.shape[1:]), None)
                y[first:last] += F.conv2d(inner, u.T[:, :, None, None])
        return y

    def _scales_and_shifts(self, parts: _Parts) -> tuple[torch.Tensor, torch.Tensor]:
        """[B, R] or [1, R] each."""
        channels = [part for _, _, part in parts]
        return self._mix.per_row([one.scale for one in channels]), self._mix.per_row([one.shift for one in channels])

    def _kernel(self, part: Channels) -> torch.Tensor:
        """scale (W + u^T v), in W's shape."""
        if part.kernel is not None:
            return part.kernel
        kernel = self._weight * part.scale[:, None, None, None]
        if part.factors is not None:
            u, v = part.factors
            kernel += (u.T @ v).view(kernel.shape)
        return kernel

    def _run(self, x: torch.Tensor, kernel: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        self._convolve._parameters = {"weight": kernel, "bias": bias}  # type: ignore[dict-item]
        found: torch.Tensor = self._convolve(x)
        return found


class LivePointwise(LiveConvolution):
    """A matrix times every position of an image, where those are rows in memory."""

    def _apart(self, x: torch.Tensor, parts: _Parts) -> torch.Tensor:
        rows, y = _rows(x), self._empty(x)
        for first, last, part in parts:
            torch.addmm(
                part.shift,
                rows[first:last].flatten(0, 1),
                self._matrix(self._kernel(part)),
                out=y[first:last].flatten(0, 1),
            )
        return _images(y, x)

    def _together(self, x: torch.Tensor, parts: _Parts) -> torch.Tensor:
        rows, y = _rows(x), self._empty(x)
        torch.mm(rows.flatten(0, 1), self._matrix(self._weight), out=y.flatten(0, 1))
        scale, shift = self._scales_and_shifts(parts)
        torch.addcmul(shift[:, None], y, scale[:, None], out=y)
        for first, last, part in parts:
            if part.factors is not None:
                u, v = part.factors
                y[first:last].flatten(0, 1).addmm_(rows[first:last].flatten(0, 1) @ v.T, u)
        return _images(y, x)

    def _empty(self, x: torch.Tensor) -> torch.Tensor:
        return x.new_empty(len(x), x.shape[2] * x.shape[3], len(self._weight))

    @staticmethod
    def _matrix(kernel: torch.Tensor) -> torch.Tensor:
        return kernel.flatten(1).T


def _rows(x: torch.Tensor) -> torch.Tensor:
    """[B, positions, C] of images [B, C, H, W]: a view, if their channels are last in memory."""
    return x.permute(0, 2, 3, 1).flatten(1, 2).contiguous()


def _images(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Images [B, R, H, W] of rows [B, positions, R], with the sides of x."""
    return y.unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)


class LiveAttentionPool(nn.Module):
    """A ResNet's: the mean of all positions asks, every position answers."""

    def __init__(self, pool: AttentionPool2d, mix: Mix, name: str) -> None:
        super().__init__()
        self._positions, self._mix, self._heads = pool.positional_embedding, mix, pool.num_heads
        self._name = f"{name}.{POSITIONS}"
        self._query, self._key, self._value, self._out = (
            LiveLinear.of(getattr(pool, key), mix, f"{name}.{key}") for key in ("q_proj", "k_proj", "v_proj", "c_proj")
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = x.flatten(2).mT
        tokens = torch.cat([tokens.mean(1, keepdim=True), tokens], 1) + self._positions
        if (delta := self._mix.delta(self._name)) is not None:
            tokens = tokens + delta
        query, key, value = (
            linear(rows).unflatten(2, (self._heads, -1)).transpose(1, 2)
            for linear, rows in ((self._query, tokens[:, :1]), (self._key, tokens), (self._value, tokens))
        )
        found = F.scaled_dot_product_attention(query, key, value)
        return self._out(found.transpose(1, 2).flatten(2))[:, 0]  # type: ignore[no-any-return]
