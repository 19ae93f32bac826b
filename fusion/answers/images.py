"""The one image decoder: encoded bytes to RGB. Training, the service and the command line accept the same images.

Bytes are untrusted: the format must be on a list, the size is judged from the header before a pixel is decoded, and
whatever Pillow raises becomes an `ImageError` that names the image.
"""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING

from PIL import Image

from fusion.answers.options import MAX_PIXELS
from fusion.errors import ImageError

if TYPE_CHECKING:
    from open_clip.transform import PreprocessCfg

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")
"""Accepted formats, by Pillow's names; of several frames the first. Not everything that Pillow opens: its decoders for
rare formats are little tested against hostile input, and EPS starts another program."""


def decode(
    encoded: bytes, name: str, *, max_pixels: int = MAX_PIXELS, preprocess: PreprocessCfg | None = None
) -> Image.Image:
    """Decode an image to RGB.

    Args:
        encoded: the image file.
        name: what errors call it.
        max_pixels: ceiling for the decoded image and, with `preprocess`, for the resized one.
        preprocess: of the model that will see it. None: how it would be resized is not judged.
    Raises:
        ImageError: empty, of no accepted format, damaged, or too large.
    """
    if not encoded:
        raise ImageError(f"{name} is empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # judged below, by our limit
            image = Image.open(io.BytesIO(encoded), formats=FORMATS)
        with image:
            _check_size(image.size, name, max_pixels)
            if preprocess is not None:
                _check_resized(image.size, name, max_pixels, preprocess)
            return image.convert("RGB")
    except ImageError:
        raise
    except Image.DecompressionBombError:
        raise ImageError(f"{name} has more than the {max_pixels} pixels that are decoded: scale it down") from None
    except Image.UnidentifiedImageError:
        raise ImageError(f"{name} is not an image ({', '.join(FORMATS)} are accepted)") from None
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged bytes
        raise ImageError(f"{name} is damaged and cannot be decoded ({error})") from error


def _check_size(size: tuple[int, int], name: str, max_pixels: int) -> None:
    width, height = size
    if min(size) < 1:
        raise ImageError(f"{name} is damaged: it is {width} x {height} pixels")
    if width * height > max_pixels:
        raise ImageError(
            f"{name} has {width} x {height} pixels, more than the {max_pixels} that are decoded: scale it down"
        )


def _check_resized(size: tuple[int, int], name: str, max_pixels: int, preprocess: PreprocessCfg) -> None:
    """A line of one pixel by a million is small until its short side is resized to the model's input, or vanishes."""
    if preprocess.resize_mode == "squash":
        return
    width, height = size
    wanted = preprocess.size
    rows, columns = (wanted, wanted) if isinstance(wanted, int) else wanted
    ratios = width / columns, height / rows
    ratio = max(ratios) if preprocess.resize_mode == "longest" else min(ratios)
    resized = width / ratio, height / ratio
    if resized[0] * resized[1] > max_pixels or round(min(resized)) < 1:
        raise ImageError(f"{name} is {width} x {height} pixels: too long and thin to be resized, crop it")
