"""What applies experts to the image side of a base.

Letters: B images, D dimensions of the embedding.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch.nn import functional as F

from fusion.answers.clip import Clip
from fusion.answers.live.mix import Mix
from fusion.answers.live.sides import LiveSide


class LiveImages(ABC):
    """The image side of a base, which applies an expert of its own to every image. One thread at a time."""

    def __init__(self, clip: Clip) -> None:
        self._clip, self._mix = clip, Mix()

    def prepared(self, side: LiveSide) -> LiveSide:
        """A side as this tower needs it, on the model's device. From any thread."""
        return side.to(self._clip.device)

    @torch.inference_mode()
    def image_features(self, pixels: torch.Tensor, owners: Sequence[LiveSide], *, unit: bool = True) -> torch.Tensor:
        """Features, float32 [B, D] on the CPU, of preprocessed pixels [B, 3, H, W], each by its owner.

        Args:
            owners: B `prepared` sides.
            unit: of length 1; else as the encoder gives them.
        """
        places = {side: place for place, side in enumerate(dict.fromkeys(owners))}
        order = sorted(range(len(owners)), key=lambda row: places[owners[row]])
        self._mix.set([owners[row] for row in order], self._clip.device)
        moved = pixels[order].to(self._clip.device, memory_format=torch.channels_last)
        features = self._encode(moved)
        features = (F.normalize(features, dim=-1) if unit else features).float().cpu()
        return torch.empty_like(features).index_copy_(0, torch.tensor(order), features)

    @abstractmethod
    def _encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """Features [B, D], as the encoder gives them, of the images whose owners the mix knows."""
