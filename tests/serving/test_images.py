"""Untrusted bytes become crops, or an error that names them."""

from __future__ import annotations

import contextlib
import io
import struct
import warnings
import zlib
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fusion.answers.clip import build_clip
from fusion.answers.images import FORMATS
from fusion.errors import ImageError
from fusion.store.blobs import BlobRef
from fusion.versions.bases import Base
from serving.images import Cropper, Normaliser, Upload
from tests.serving.helpers import pictures, png
from tests.tiny import MODEL_CFG, PREPROCESS_CFG

CROPPER = Cropper(PREPROCESS_CFG, max_pixels=1_000_000)


def encoded(image: Image.Image, kind: str, **how: Any) -> bytes:
    body = io.BytesIO()
    image.save(body, kind, **how)
    return body.getvalue()


def noise(size: tuple[int, int], mode: str = "RGB") -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


def png_header(width: int, height: int) -> bytes:
    """A PNG of that size whose pixels never come: what a decompression bomb looks like before it is decoded."""
    body = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    head = b"IHDR" + body
    chunk = struct.pack(">I", len(body)) + head + struct.pack(">I", zlib.crc32(head))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))


@pytest.mark.parametrize("resize_mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("size", [(36, 36), (100, 41), (17, 90), (32, 32)])
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P"])
def test_a_crop_and_its_pixels_are_the_bases_own_preprocessing(
    resize_mode: str, size: tuple[int, int], mode: str
) -> None:
    cfg = {**PREPROCESS_CFG, "resize_mode": resize_mode, "mean": [0.48, 0.45, 0.4], "std": [0.26, 0.25, 0.27]}
    clip = build_clip(Base(BlobRef("", "0" * 64, 0), "tiny", MODEL_CFG, cfg), None)
    body = encoded(noise(size, mode), "PNG")
    crop = Cropper(cfg, max_pixels=1_000_000).crop(Upload("x", body))
    assert crop.dtype == np.uint8
    torch.testing.assert_close(
        Normaliser(cfg).pixels(crop[None]), clip.pixels([Image.open(io.BytesIO(body))]), rtol=0, atol=0
    )


@pytest.mark.parametrize("kind", FORMATS)
def test_accepted_formats_can_be_read(kind: str) -> None:
    assert CROPPER.crop(Upload("x", encoded(noise((40, 40)), kind))).shape == (32, 32, 3)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "cat.jpg is empty"),
        (b"hello", "cat.jpg is not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "cat.jpg is not an image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "cat.jpg is not an image"),
        (png(pictures("red")[0])[:-40], "cat.jpg is damaged"),
        (encoded(noise((200, 200)), "JPEG")[:3000], "cat.jpg is damaged"),
        (png_header(1001, 1000), "1001 x 1000 pixels, more than"),
        (png_header(60_000, 60_000), "cat.jpg has"),
        (png_header(900_000, 1), "too long and thin"),
    ],
)
def test_what_can_not_be_decoded_safely_is_refused_by_name(body: bytes, says: str) -> None:
    with pytest.raises(ImageError, match=says):
        CROPPER.crop(Upload("cat.jpg", body))


@settings(max_examples=200, deadline=None)
@given(data=st.data(), kind=st.sampled_from(FORMATS))
def test_broken_bytes_give_a_crop_or_an_image_error_and_nothing_else(data: st.DataObject, kind: str) -> None:
    body = bytearray(encoded(noise((24, 24)), kind))
    for place in data.draw(st.lists(st.integers(0, len(body) - 1), min_size=1, max_size=12)):
        body[place] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ImageError), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PIL's, about the tags of a broken TIFF
        assert CROPPER.crop(Upload("x", bytes(body))).shape == (32, 32, 3)
