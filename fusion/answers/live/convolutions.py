"""The image side of a convolutional network in which every image of a batch may belong to another expert."""

from __future__ import annotations

from typing import Any

import torch
from open_clip.modified_resnet import AttentionPool2d
from torch import nn

from fusion.answers.clip import Clip, modules_copied
from fusion.answers.folding import Folding, rest_of
from fusion.answers.live.convolution_layers import (
    LiveAttentionPool,
    LiveConvolution,
    LivePointwise,
    is_pointwise,
)
from fusion.answers.live.images import LiveImages
from fusion.answers.live.layers import LiveLinear
from fusion.answers.live.noise import moved_tensors, noise_side
from fusion.answers.live.sides import LiveSide

_TOLERANCE = 1e-4


class LiveConvolutions(LiveImages):
    """Of `ModifiedResNet` and timm's convolutional networks. Use `live_convolutions`."""

    def __init__(self, clip: Clip, folding: Folding) -> None:
        super().__init__(clip)
        tower: Any = clip.model.visual
        norm_of = {conv.removeprefix("visual."): norm.removeprefix("visual.") for conv, norm in folding.pairs}
        norms = {name: tower.get_submodule(name) for name in norm_of.values()}
        self._convolutions: list[LiveConvolution] = []

        def live(part: nn.Module, at: str) -> nn.Module | None:
            if isinstance(part, nn.Conv2d):
                norm = norm_of.get(at)
                kind = LivePointwise if is_pointwise(part) else LiveConvolution
                self._convolutions.append(kind(part, at, norms[norm] if norm else None, norm, self._mix))
                return self._convolutions[-1]
            if at in norms:
                return rest_of(norms[at])
            if isinstance(part, AttentionPool2d):
                return LiveAttentionPool(part, self._mix, at)
            if isinstance(part, nn.Linear):
                return LiveLinear.of(part, self._mix, at)
            return None

        self._tower = modules_copied(tower, live)

    @torch.inference_mode()
    def prepared(self, side: LiveSide) -> LiveSide:
        """See `LiveImages`: what an expert changes in convolutions and BatchNorms becomes `channels`."""
        side = super().prepared(side)
        taken = {name for layer in self._convolutions for name in layer.tensors}
        return LiveSide(
            {name: factors for name, factors in side.factors.items() if name not in taken},
            {name: delta for name, delta in side.deltas.items() if name not in taken},
            channels={layer.name: layer.channels(side) for layer in self._convolutions},
        )

    def _encode(self, pixels: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self._tower(pixels)
        return features


def live_convolutions(clip: Clip, folding: Folding) -> LiveConvolutions | None:
    """The live image side of a base; None if it does more than convolve, or not as its layers are known here.

    An expert of noise is applied to images of noise, and compared with the same expert built.

    Args:
        folding: of the base; says which BatchNorm is behind which convolution.
    """
    tower: Any = clip.model.visual
    convolves = any(isinstance(module, nn.Conv2d) for module in tower.modules())
    other = any(isinstance(module, nn.LayerNorm | nn.MultiheadAttention) for module in tower.modules())
    if not convolves or other:
        return None
    live = LiveConvolutions(clip, folding)
    images = torch.randn(2, 3, *clip.image_size, generator=torch.Generator().manual_seed(0))
    side = noise_side(clip, num_components=2)
    wanted = clip.copy_with(moved_tensors(clip, side)).image_features(images)
    try:
        found = live.image_features(images, [live.prepared(side)] * 2)
    except (RuntimeError, TypeError, AttributeError, KeyError):  # a layer that does more than its class says
        return None
    return live if torch.allclose(found, wanted, atol=_TOLERANCE) else None
