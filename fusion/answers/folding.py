"""BatchNorm folded into the convolutions before it, for models that only answer: less work per image, the same answers.

In eval mode a BatchNorm is a factor and a shift per channel, which the convolution right before it can take over:
w' = w a, b' = (b - mean) a + shift with a = gain / sqrt(variance + epsilon). Answers differ in rounding alone.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from fusion.answers.clip import Clip

NORM_TENSORS = ("running_mean", "running_var", "weight", "bias")
"""Of a BatchNorm, by its own names."""
_TOLERANCE = 1e-4


class Folding:
    """Which BatchNorms of a model follow which convolutions. Holds for every model of the architecture.

    Args:
        clip: one of them. It sees a batch of noise, in which pairs are found and checked.
    """

    def __init__(self, clip: Clip) -> None:
        self.pairs: tuple[tuple[str, str], ...] = ()
        """Names of a convolution and of the BatchNorm behind it."""
        if not any(isinstance(module, _BatchNorm) for module in clip.model.modules()):
            return
        noise = torch.randn(2, 3, *clip.image_size, generator=torch.Generator().manual_seed(0))
        self.pairs, plain = _find_pairs(clip, noise)
        if not torch.allclose(self.folded(clip).image_features(noise), plain, atol=_TOLERANCE):
            self.pairs = ()  # a convolution whose result is used elsewhere too: this architecture stays as it is

    def folded(self, clip: Clip) -> Clip:
        """The same model with its pairs folded: a new `Clip` that shares all other tensors with the given one."""
        if not self.pairs:
            return clip
        other = clip.copy_with(())
        for conv_name, norm_name in self.pairs:
            conv, norm = other.model.get_submodule(conv_name), other.model.get_submodule(norm_name)
            assert isinstance(conv, nn.Conv2d)
            assert isinstance(norm, _BatchNorm)
            _fold(conv, norm)
            parent, _, key = norm_name.rpartition(".")
            other.model.get_submodule(parent)._modules[key] = rest_of(norm)
        return other


def _find_pairs(clip: Clip, noise: torch.Tensor) -> tuple[tuple[tuple[str, str], ...], torch.Tensor]:
    """Convolution and BatchNorm, by name, where one's result is the other's input; and the features of the noise."""
    made: dict[int, tuple[str, torch.Tensor]] = {}  # by id, with the tensor, so that its id is not given to another
    pairs: list[tuple[str, str]] = []

    def watch(name: str, module: nn.Module) -> Any:
        def hook(_: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            if isinstance(module, nn.Conv2d):
                made[id(output)] = (name, output)
            elif id(inputs[0]) in made:
                pairs.append((made[id(inputs[0])][0], name))

        return module.register_forward_hook(hook)

    watched = [(n, m) for n, m in clip.model.named_modules() if isinstance(m, nn.Conv2d | _BatchNorm)]
    hooks = [watch(name, module) for name, module in watched]
    try:
        features = clip.image_features(noise)
    finally:
        for hook in hooks:
            hook.remove()
    return tuple(pairs), features


def affine(
    bias: torch.Tensor | None, norm: _BatchNorm | None, own: Mapping[str, torch.Tensor], *, like: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """What a convolution's bias and the BatchNorm behind it do to each channel: a scale and a shift.

    Args:
        norm: None: there is none.
        own: by name, tensors that stand in place of the BatchNorm's own.
        like: the kernel, whose dtype and device both have.
    """
    scale = torch.ones(len(like), dtype=torch.float64, device=like.device)
    shift = torch.zeros_like(scale) if bias is None else bias.double()
    if norm is not None:
        found = {key: own.get(key, getattr(norm, key)) for key in NORM_TENSORS}
        values = {key: value.double() for key, value in found.items() if value is not None}
        scale = (values["running_var"] + norm.eps).rsqrt() * values.get("weight", 1.0)
        shift = (shift - values["running_mean"]) * scale + values.get("bias", 0.0)
    return scale.to(like.dtype), shift.to(like.dtype)


def _fold(conv: nn.Conv2d, norm: _BatchNorm) -> None:
    scale, shift = affine(conv.bias, norm, {}, like=conv.weight)
    weight = torch.empty_like(conv.weight).copy_(conv.weight * scale[:, None, None, None])
    conv._parameters["weight"] = nn.Parameter(weight.detach(), requires_grad=False)
    conv._parameters["bias"] = nn.Parameter(shift.detach(), requires_grad=False)


def rest_of(norm: _BatchNorm) -> nn.Module:
    """What a BatchNorm does besides: timm's apply an activation too."""
    rest = [copy.copy(part) for key in ("drop", "act") if isinstance(part := getattr(norm, key, None), nn.Module)]
    return nn.Sequential(*rest).eval() if rest else nn.Identity()
