"""BatchNorm folded into the convolutions before it, for models that only answer: less work per image, the same answers.

In eval mode a BatchNorm is a factor and a shift per channel, which the convolution right before it can take over:
w' = w a, b' = (b - mean) a + shift with a = gain / sqrt(variance + epsilon). Answers differ in rounding alone.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from fusion.answers.clip import Clip

_TOLERANCE = 1e-4


class Folding:
    """Which BatchNorms of a model follow which convolutions. Holds for every model of the architecture.

    Args:
        clip: one of them. It sees a batch of noise, in which pairs are found and checked.
    """

    def __init__(self, clip: Clip) -> None:
        self._pairs: tuple[tuple[str, str], ...] = ()
        if not any(isinstance(module, _BatchNorm) for module in clip.model.modules()):
            return
        noise = torch.randn(2, 3, *clip.image_size, generator=torch.Generator().manual_seed(0))
        self._pairs, plain = _find_pairs(clip, noise)
        if not torch.allclose(self.folded(clip).image_features(noise), plain, atol=_TOLERANCE):
            self._pairs = ()  # a convolution whose result is used elsewhere too: this architecture stays as it is

    def folded(self, clip: Clip) -> Clip:
        """The same model with its pairs folded: a new `Clip` that shares all other tensors with the given one."""
        if not self._pairs:
            return clip
        other = clip.copy_with(())
        for conv_name, norm_name in self._pairs:
            conv, norm = other.model.get_submodule(conv_name), other.model.get_submodule(norm_name)
            assert isinstance(conv, nn.Conv2d)
            assert isinstance(norm, _BatchNorm)
            _fold(conv, norm)
            parent, _, key = norm_name.rpartition(".")
            other.model.get_submodule(parent)._modules[key] = _rest(norm)
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


def _fold(conv: nn.Conv2d, norm: _BatchNorm) -> None:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    mean, variance = norm.running_mean.double(), norm.running_var.double()
    factor = (variance + norm.eps).rsqrt()
    factor = factor if norm.weight is None else factor * norm.weight.double()
    shift = -mean if conv.bias is None else conv.bias.double() - mean
    shift = shift * factor if norm.bias is None else shift * factor + norm.bias.double()
    weight = torch.empty_like(conv.weight).copy_(conv.weight.double() * factor[:, None, None, None])
    conv._parameters["weight"] = nn.Parameter(weight.detach(), requires_grad=False)
    conv._parameters["bias"] = nn.Parameter(shift.detach().to(weight.dtype), requires_grad=False)


def _rest(norm: _BatchNorm) -> nn.Module:
    """What a BatchNorm does besides: timm's apply an activation too."""
    rest = [copy.copy(part) for key in ("drop", "act") if isinstance(part := getattr(norm, key, None), nn.Module)]
    return nn.Sequential(*rest).eval() if rest else nn.Identity()
