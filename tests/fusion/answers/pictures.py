"""One picture as people's programs write it: the same pixels in many formats, modes and orientations."""

from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np
from PIL import Image, ImageChops, ImageCms


def encoded(image: Image.Image, kind: str, **how: Any) -> bytes:
    body = io.BytesIO()
    image.save(body, kind, **how)
    return body.getvalue()


def scene(size: tuple[int, int] = (48, 32), *, grey: bool = False) -> Image.Image:
    """Smooth colours without any symmetry, so that a turn, a flip or swapped channels show."""
    x, y = np.meshgrid(np.linspace(0, 1, size[0]), np.linspace(0, 1, size[1]))
    channels = (x * 255, y * 255, np.hypot(x - 0.2, y - 0.7) * 200)
    pixels = np.stack([channels[0]] * 3 if grey else channels, axis=-1)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def on_transparency(drawing: Image.Image) -> Image.Image:
    """RGBA that is `drawing` where it is not white, and transparent black where it is."""
    rgba = np.dstack([np.asarray(drawing), np.full(drawing.size[::-1], 255, np.uint8)])
    rgba[(rgba[..., :3] == 255).all(-1)] = 0
    return Image.fromarray(rgba)


def glyph(size: tuple[int, int] = (48, 32)) -> Image.Image:
    """A black L on white."""
    pixels = np.full((size[1], size[0], 3), 255, np.uint8)
    pixels[4:28, 8:14] = 0
    pixels[22:28, 8:34] = 0
    return Image.fromarray(pixels)


def turned(image: Image.Image, orientation: int) -> tuple[Image.Image, Image.Exif]:
    """Pixels and EXIF of a camera that was held so that viewers show `image`."""
    undo = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE",
            6: "ROTATE_90", 7: "TRANSVERSE", 8: "ROTATE_270"}  # fmt: skip
    exif = Image.Exif()
    exif[274] = orientation
    stored = image.transpose(Image.Transpose[undo[orientation]]) if orientation in undo else image
    return stored, exif


def sixteen_bits(grey: Image.Image) -> Image.Image:
    return Image.fromarray(np.asarray(grey.convert("L")).astype(np.uint16) * 257)


def cmyk(image: Image.Image) -> Image.Image:
    """Inks without black: 255 - RGB."""
    return Image.merge("CMYK", [*ImageChops.invert(image).split(), Image.new("L", image.size, 0)])


def cmyk_jpeg_without_adobe(image: Image.Image) -> bytes:
    """A CMYK JPEG that no Adobe marker describes: it stores the inks as they are, not inverted."""
    data = encoded(ImageChops.invert(cmyk(image)), "JPEG", quality=95, subsampling=0)
    start = data.index(b"\xff\xee")
    length = struct.unpack(">H", data[start + 2 : start + 4])[0]
    return data[:start] + data[start + 2 + length :]


def swapped_primaries(image: Image.Image) -> tuple[Image.Image, bytes]:
    """The same colours in an RGB space whose red is sRGB's green and the other way round, and that space's profile."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    tags = range(132, 132 + 12 * int.from_bytes(profile[128:132], "big"), 12)
    red, green = (next(at for at in tags if profile[at : at + 4] == name) for name in (b"rXYZ", b"gXYZ"))
    profile[red : red + 4], profile[green : green + 4] = b"gXYZ", b"rXYZ"
    renamed = bytes(profile).replace("sRGB".encode("utf-16-be"), "swap".encode("utf-16-be"))
    r, g, b = image.split()
    return Image.merge("RGB", (g, r, b)), renamed
