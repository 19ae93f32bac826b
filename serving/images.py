"""Images of a request: untrusted bytes in, one crop of the model's own size out, as uint8.

This is the only place of the service that decodes. Replicas get crops, 150 kB each at 224 pixels however large the
photograph was, instead of decoding the same file once in the base and once in every expert, and never parse what a
stranger sent. A crop is what torchvision's resize and centre crop give, before the division by 255: `pixels` finishes
the base's own preprocessing bit for bit.

Letters: B images, H x W pixels of the model's input.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

from fusion.errors import ImageError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
"""Formats that are tried. Not all that PIL knows: some start other programs (EPS) or are rarely looked at."""


@dataclass(frozen=True)
class Upload:
    """One image as it came: the name that answers and errors call it by, and its encoded bytes."""

    name: str
    encoded: bytes


class Cropper:
    """Decodes, checks, resizes and crops. Safe between threads.

    Args:
        preprocess_cfg: of the base.
        max_pixels: ceiling for a decoded image, and for what resizing makes of it.
    """

    def __init__(self, preprocess_cfg: Mapping[str, Any], *, max_pixels: int) -> None:
        cfg = preprocess_config(preprocess_cfg)
        self._max_pixels = max_pixels
        self._size = min(cfg.size) if isinstance(cfg.size, tuple) else cfg.size
        self._enlarges = cfg.resize_mode == "shortest"
        as_is = replace(cfg, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
        self._transform = image_transform_v2(as_is, is_train=False)

    def crop(self, upload: Upload) -> np.ndarray:
        """uint8 [H, W, 3]. Raises `ImageError` that names the upload."""
        if not upload.encoded:
            raise ImageError(f"{upload.name} is empty")
        try:
            with Image.open(io.BytesIO(upload.encoded), formats=FORMATS) as image:
                self._check_size(image, upload.name)  # from the header: nothing is decoded yet
                unit = self._transform(image.convert("RGB"))
        except Image.DecompressionBombError:
            raise ImageError(f"{upload.name} has too many pixels to decode safely: scale it down") from None
        except Image.UnidentifiedImageError:
            raise ImageError(f"{upload.name} is no image ({', '.join(FORMATS)} can be read)") from None
        except ImageError:
            raise
        except Exception as error:  # PIL's decoders raise nearly anything on bytes made to break them
            raise ImageError(f"{upload.name} is damaged and can't be decoded ({error})") from error
        return unit.mul(255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()

    def _check_size(self, image: Image.Image, name: str) -> None:
        if image.width * image.height > self._max_pixels:
            raise ImageError(
                f"{name} has {image.width} x {image.height} pixels, more than the {self._max_pixels} that are decoded: "
                "scale it down"
            )
        # a line of one pixel by a million is small until its short side is resized to the model's
        long, short = max(image.size), max(1, min(image.size))
        if self._enlarges and self._size * self._size * (long / short) > self._max_pixels:
            raise ImageError(f"{name} is {image.width} x {image.height}: too long and thin to be resized, crop it")


def pixels(crops: np.ndarray, preprocess_cfg: Mapping[str, Any]) -> torch.Tensor:
    """What the model takes, float32 [B, 3, H, W], of crops uint8 [B, H, W, 3]."""
    cfg = preprocess_config(preprocess_cfg)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (cfg.mean, cfg.std))
    return torch.from_numpy(np.array(crops)).permute(0, 3, 1, 2).to(torch.float32).div(255).sub(mean).div(std)


def preprocess_config(values: Mapping[str, Any]) -> PreprocessCfg:
    """open_clip's own record of a base's `preprocess_cfg`, which JSON has made lists of."""
    return PreprocessCfg(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})
