"""Images of a request: untrusted bytes in, one crop of the model's own size out, as uint8.

This is the only place of the service that decodes. Models get crops, 150 kB each at 224 pixels however large the
photograph was: it is decoded once, for the base and for every expert. A crop is the result of torchvision's resize and
centre crop, before the division by 255: a `Normaliser` finishes the base's own preprocessing bit for bit.

Letters: B images, H x W pixels of the model's input.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from open_clip.transform import image_transform_v2
from torchvision.transforms import Normalize, ToTensor

from fusion.answers.clip import preprocess_config
from fusion.answers.images import decode


@dataclass(frozen=True)
class Upload:
    """One image as received: the name that answers and errors call it by, and its encoded bytes."""

    name: str
    encoded: bytes


class Cropper:
    """Decodes, checks, resizes and crops. Thread-safe.

    Args:
        preprocess_cfg: of the base.
        max_pixels: ceiling for a decoded image, and for the resized one.
    """

    def __init__(self, preprocess_cfg: Mapping[str, Any], *, max_pixels: int) -> None:
        self._cfg = preprocess_config(preprocess_cfg)
        self._max_pixels = max_pixels
        whole: Any = image_transform_v2(self._cfg, is_train=False)
        self._steps = [step for step in whole.transforms if not isinstance(step, ToTensor | Normalize)]

    def crop(self, upload: Upload, background: str | None = None) -> np.ndarray:
        """uint8 [H, W, 3]; `background`: see `decode`. Raises `ImageError` that names the upload."""
        image = decode(
            upload.encoded, upload.name, max_pixels=self._max_pixels, preprocess=self._cfg, background=background
        )
        for step in self._steps:
            image = step(image)
        return np.array(image)


class Normaliser:
    """Crops to the model's input. Thread-safe."""

    def __init__(self, preprocess_cfg: Mapping[str, Any]) -> None:
        cfg = preprocess_config(preprocess_cfg)
        self._mean, self._std = (torch.tensor(values).view(1, 3, 1, 1) for values in (cfg.mean, cfg.std))

    def pixels(self, crops: np.ndarray) -> torch.Tensor:
        """float32 [B, 3, H, W] of crops uint8 [B, H, W, 3], in the memory layout that convolutions like best."""
        values = torch.from_numpy(crops).permute(0, 3, 1, 2).to(torch.float32)
        return values.div_(255).sub_(self._mean).div_(self._std)
