"""Experts applied to the base as they are, without building their models: one forward for images of many tasks.

Where a mode keeps few components of a matrix, an expert need not be built: the base's own products are computed once
for all images of a batch, and each image's expert adds its components and its small tensors. An expert in memory has
the size of its components, megabytes, and is ready once its trigger is read.

For image sides of open_clip's `VisionTransformer`, `ModifiedResNet` and timm's convolutional networks, and for text
sides with a causal mask. Others are rebuilt.
"""

from __future__ import annotations

from fusion.answers.clip import Clip
from fusion.answers.folding import Folding
from fusion.answers.live.convolutions import live_convolutions
from fusion.answers.live.images import LiveImages
from fusion.answers.live.noise import moved_tensors, noise_side
from fusion.answers.live.sides import LiveSide, image_side
from fusion.answers.live.texts import live_texts
from fusion.answers.live.transformer import live_transformer

__all__ = ["LiveImages", "LiveSide", "image_side", "live_images", "live_texts", "moved_tensors", "noise_side"]


def live_images(clip: Clip, folding: Folding) -> LiveImages | None:
    """The live image side of a base; None if its experts have to be rebuilt.

    Args:
        folding: of the base.
    """
    return live_transformer(clip) or live_convolutions(clip, folding)
