"""The image side of a vision transformer in which every image of a batch may belong to another expert."""

from __future__ import annotations

from typing import Any

import torch
from open_clip.transformer import VisionTransformer

from fusion.answers.clip import Clip
from fusion.answers.live.images import LiveImages
from fusion.answers.live.layers import is_known, projected, with_live_parts
from fusion.answers.live.sides import POSITIONS

_FIRST = "class_embedding"


class LiveTransformer(LiveImages):
    """Of open_clip's `VisionTransformer`. Use `live_transformer`."""

    def __init__(self, clip: Clip) -> None:
        super().__init__(clip)
        tower: Any = clip.model.visual
        self._projection, self._positions = tower.proj, tower.positional_embedding.detach()
        self._tower = with_live_parts(tower, self._mix, "")
        self._tower._parameters["proj"] = None
        del self._tower._parameters[POSITIONS]

    def _encode(self, pixels: torch.Tensor) -> torch.Tensor:
        positions: torch.Tensor = self._positions
        if (delta := self._mix.delta(POSITIONS)) is not None:
            positions = positions + delta
        if (first := self._mix.delta(_FIRST)) is not None:
            positions = positions.expand(len(first), -1, -1).clone()
            positions[:, 0] += first
        self._tower.positional_embedding = positions
        return projected(self._tower(pixels), self._projection, self._mix, "proj")


def live_transformer(clip: Clip) -> LiveTransformer | None:
    """The live image side of a base; None if it is no `VisionTransformer`, or has parts that are not known here."""
    tower: Any = clip.model.visual
    if not isinstance(tower, VisionTransformer) or tower.proj is None or tower.output_tokens:
        return None
    known = tower.attn_pool is None and is_known(tower, {POSITIONS, _FIRST, "proj"}, tower.transformer)
    return LiveTransformer(clip) if known else None
