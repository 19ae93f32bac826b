"""The one image decoder: encoded bytes to RGB. Training, the service and the command line accept the same images.

Bytes are untrusted: the format must be on a list, the size is judged from the header before a pixel is decoded, and
whatever Pillow raises becomes an `ImageError` that names the image.
"""

from __future__ import annotations

import io
import re
import warnings
from typing import TYPE_CHECKING

from PIL import (  # loaded here, so that `Image.open` loads no other plugin to look for a format
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    Jpeg2KImagePlugin,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from fusion.answers.options import MAX_PIXELS
from fusion.answers.rgb import to_rgb, upright_size
from fusion.errors import ConduError, ImageError

if TYPE_CHECKING:
    from open_clip.transform import PreprocessCfg

_PLUGINS = {
    "JPEG": JpegImagePlugin,
    "PNG": PngImagePlugin,
    "WEBP": WebPImagePlugin,
    "GIF": GifImagePlugin,
    "BMP": BmpImagePlugin,
    "TIFF": TiffImagePlugin,
    "PPM": PpmImagePlugin,
    "AVIF": AvifImagePlugin,
    "JPEG2000": Jpeg2KImagePlugin,
}
FORMATS = tuple(_PLUGINS)
"""Accepted formats, by Pillow's names; of several frames the first. Not everything that Pillow opens: its decoders for
rare formats are little tested against hostile input, and EPS starts another program."""

SUFFIXES = tuple(
    [
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".mpo",
        ".png",
        ".apng",
        ".webp",
        ".gif",
        ".bmp",
        ".dib",
        ".tif",
        ".tiff",
        ".ppm",
        ".pgm",
        ".pbm",
        ".pnm",
        ".pfm",
        ".avif",
        ".avifs",
        ".jp2",
        ".j2k",
        ".jpx",
        ".j2c",
        ".jpc",
        ".jpf",
    ]
)
"""What files of these formats are called, in lower case."""

_SIGNATURES = (
    (rb"\xff\xd8\xff", "JPEG"),
    (rb"\x89PNG\r\n\x1a\n", "PNG"),
    (rb"RIFF....WEBP", "WEBP"),
    (rb"GIF8[79]a", "GIF"),
    (rb"II\*\0|MM\0\*|II\+\0|MM\0\+", "TIFF"),
    (rb"BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0", "BMP"),
    (rb"P[1-6Ff]\s", "PPM"),
    (rb"....ftypavi[fs]", "AVIF"),
    (rb"....jP  \r\n\x87\n|\xff\x4f\xff\x51", "JPEG2000"),
    (rb"....ftyp(hei[cxms]|hev[cx]|mif1|msf1)", "HEIC"),
    (rb"%PDF-", "PDF"),
    (rb"%!PS", "PostScript"),
    (rb"8BPS", "Photoshop"),
    (rb"\x00\x00\x01\x00", "ICO"),
    (rb"#\?RADIANCE|#\?RGBE", "Radiance HDR"),
    (rb"\x76\x2f\x31\x01", "OpenEXR"),
    (rb"\xff\x0a|\0\0\0\x0cJXL ", "JPEG XL"),
    (rb"\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)?(<!DOCTYPE svg|<svg)", "SVG"),
)
SIGNATURE_BYTES = 512
"""The beginning of a file by which `format_of` knows its format."""


def decode(
    encoded: bytes,
    name: str,
    *,
    max_pixels: int = MAX_PIXELS,
    preprocess: PreprocessCfg | None = None,
    background: str | None = None,
) -> Image.Image:
    """Decode an image to RGB: upright, in sRGB, on a ground where it is transparent (see `fusion.answers.rgb`).

    Args:
        encoded: the image file.
        name: what errors call it.
        max_pixels: ceiling for the decoded image and, with `preprocess`, for the resized one.
        preprocess: of the model that will see it. None: how it would be resized is not judged.
        background: colour under transparent pixels, a CSS name or `#rrggbb`; None: white.
    Raises:
        ImageError: empty, of no accepted format, damaged, too large, or of numbers without a known black and white.
    """
    if not encoded:
        raise ImageError(f"{name} is empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # sizes are judged below, by our limit; damage that decodes is no error
            image = Image.open(io.BytesIO(encoded), formats=FORMATS)
            with image:
                _check_size(image.size, name, max_pixels)
                if preprocess is not None:
                    _check_resized(upright_size(image), name, max_pixels, preprocess)
                return to_rgb(image, name, background=background)
    except ConduError:
        raise
    except Image.DecompressionBombError:
        raise ImageError(f"{name} has more than the {max_pixels} pixels that are decoded: scale it down") from None
    except Image.UnidentifiedImageError:
        raise ImageError(_not_an_image(encoded, name)) from None
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged bytes
        raise ImageError(f"{name} is damaged and cannot be decoded ({error or type(error).__name__})") from error


def format_of(encoded: bytes) -> str:
    """The format of a file as far as its beginning tells, by Pillow's name where it has one; '' if it tells nothing."""
    start = encoded[:SIGNATURE_BYTES]
    return next((kind for pattern, kind in _SIGNATURES if re.match(pattern, start, re.DOTALL)), "")


def _not_an_image(encoded: bytes, name: str) -> str:
    """Why Pillow can't open the bytes."""
    kind = format_of(encoded)
    accepted = ", ".join(FORMATS)
    if kind in FORMATS:
        return f"{name} is damaged, or a kind of {kind} that cannot be decoded: save it again, as JPEG or PNG"
    if kind:
        return f"{name} is not an image ({accepted} are accepted) but {kind}: export it as JPEG or PNG"
    return f"{name} is not an image ({accepted} are accepted)"


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
