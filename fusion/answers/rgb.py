"""What an opened image looks like, in 8-bit sRGB: turned upright, scaled, on a ground where it is transparent.

Each kind of pixel that cameras, scanners and drawing programs write has one rule here; the table is in docs/data.md.
What has no single meaning is refused by name rather than guessed.

Letters: H x W pixels.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageChops, ImageCms, ImageColor

from fusion.errors import ConfigError, ImageError

_WHITE = (255, 255, 255)
"""Under transparent pixels: the ground on which most drawings, logos and glyphs are meant to be seen."""

_DEEP_GREY = ("I;16", "I;16B", "I;16L", "I;16N", "I", "F")
_SIDEWAYS = (5, 6, 7, 8)
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_BITS_PER_SAMPLE, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0
_COLOUR_SPACES = {"RGB": "RGB", "L": "GRAY", "CMYK": "CMYK"}


def parse_background(colour: str) -> tuple[int, int, int]:
    """A colour's red, green and blue, 0 to 255, from a CSS name or `#rrggbb`. Raises `ConfigError`."""
    try:
        parts = ImageColor.getrgb(colour)
    except (ValueError, AttributeError, TypeError):
        parts = (0, 0, 0, 0)
    if len(parts) != 3:
        raise ConfigError(f"background {colour!r} is not an opaque colour: write a CSS name such as white, or #rrggbb")
    return parts[0], parts[1], parts[2]


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height as the image is meant to be seen."""
    width, height = image.size
    return (height, width) if _orientation(image) in _SIDEWAYS else (width, height)


def to_rgb(image: Image.Image, name: str = "the image", *, background: str | None = None) -> Image.Image:
    """An image of any mode as RGB, sRGB, upright; of several frames the first.

    Args:
        image: as `Image.open` gives it: its orientation, ICC profile and transparency are in its metadata.
        name: what errors call it.
        background: colour under transparent pixels, a CSS name or `#rrggbb`; None: white.
    Raises:
        ImageError: numbers whose black and white can't be told. Pillow's own errors on damaged bytes pass through.
    """
    ground = parse_background(background) if background is not None else _WHITE
    image.load()
    orientation = _orientation(image)
    profile = image.info.get("icc_profile")
    if image.mode in _DEEP_GREY:
        colour, alpha = _deep_grey(image, name)
    elif image.has_transparency_data:
        colour, alpha = _split_alpha(image)
    else:
        colour, alpha = _plain(image), None
    rgb = _to_srgb(colour, profile)
    if alpha is not None:
        on_ground = Image.new("RGB", rgb.size, ground)
        on_ground.paste(rgb, mask=alpha)
        rgb = on_ground
    upright = rgb.transpose(_TURNS[orientation]) if orientation in _TURNS else rgb
    upright.info = {}  # what it said of the pixels is done, and must not be done again
    return upright


def _orientation(image: Image.Image) -> int:
    """EXIF's (or XMP's) orientation, 1 to 8. A TIFF is turned by Pillow itself."""
    if image.format == "TIFF":
        return 1
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # many cameras write an EXIF block that nobody can parse; the pixels are what they are
        return 1


def _plain(image: Image.Image) -> Image.Image:
    """The colours of an image without transparency, in L, RGB, CMYK or LAB."""
    if image.mode == "CMYK" and image.format in ("JPEG", "MPO") and "adobe" not in image.info:
        return ImageChops.invert(image)  # Pillow takes every CMYK JPEG for one of Adobe's, which store 255 - ink
    if image.mode == "1":
        return image.convert("L")
    return image if image.mode in ("L", "RGB", "CMYK", "LAB") else image.convert("RGB")


def _split_alpha(image: Image.Image) -> tuple[Image.Image, Image.Image]:
    """Colours (L or RGB) and alpha (L)."""
    key = image.info.get("transparency")
    if image.mode == "RGB" and isinstance(key, tuple) and max(key) > 255:  # of a PNG with 16 bits per channel
        image.info["transparency"] = tuple(part >> 8 for part in key)
    if image.mode in ("1", "L", "LA", "La"):
        both = image.convert("LA")
        return both.getchannel("L"), both.getchannel("A")
    rgba = image.convert("RGBA")
    return rgba.convert("RGB"), rgba.getchannel("A")


def _deep_grey(image: Image.Image, name: str) -> tuple[Image.Image, Image.Image | None]:
    """Grey values of more than 8 bits, scaled to 8 (L), and alpha if one value is declared transparent."""
    tags: Any = getattr(image, "tag_v2", {})
    values_HW = np.asarray(image).astype(np.float32)
    key = image.info.get("transparency")
    alpha = None
    if isinstance(key, int):
        alpha = Image.fromarray(np.where(values_HW == key, 0, 255).astype(np.uint8))
    if image.mode.startswith("I;16"):
        bits = tags.get(_BITS_PER_SAMPLE, 16)
        white = float((1 << int(bits[0] if isinstance(bits, tuple) else bits)) - 1)
    elif image.format == "PPM":
        white = 65535.0
    else:
        white = _white_of(values_HW, name, floats=image.mode == "F")
    scaled_HW = np.rint(np.clip(values_HW / white, 0, 1) * 255)
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        scaled_HW = 255 - scaled_HW
    return Image.fromarray(scaled_HW.astype(np.uint8)), alpha


def _white_of(values_HW: np.ndarray, name: str, *, floats: bool) -> float:
    """The value that stands for white, where the format does not say: 1 (floats), 255 or 65535, the first that fits."""
    lowest, highest = float(values_HW.min()), float(values_HW.max())
    if not (np.isfinite(lowest) and np.isfinite(highest)):
        raise ImageError(f"{name} holds NaN or infinite values: there is no telling which is black and which is white")
    fitting = [white for white in ((1.0, 255.0, 65535.0) if floats else (255.0, 65535.0)) if highest <= white]
    if lowest < 0 or not fitting:
        raise ImageError(
            f"{name} holds values from {lowest:g} to {highest:g}: there is no telling which is black and which is "
            "white. Scale them to 0 to 1 (floats), or save it with 8 or 16 bits"
        )
    return fitting[0]


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """RGB in sRGB, by the image's own ICC profile where it has one that fits its channels."""
    if image.mode == "LAB":
        return _converted(image, ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")))
    if profile:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            fits = source.profile.xcolor_space.strip() == _COLOUR_SPACES[image.mode]
            is_srgb = image.mode == "RGB" and (source.profile.profile_description or "").startswith("sRGB")
            if fits and not is_srgb:
                return _converted(image, source)
        except (ImageCms.PyCMSError, OSError):  # viewers ignore a profile that can't be read, and so do we
            pass
    return image.convert("RGB")


def _converted(image: Image.Image, source: ImageCms.ImageCmsProfile) -> Image.Image:
    target = ImageCms.createProfile("sRGB")
    converted = ImageCms.profileToProfile(image, source, target, outputMode="RGB")
    assert converted is not None, "only a conversion in place returns nothing"
    return converted
