"""The decoder: accepted formats give Pillow's own pixels, everything else an error that names the image."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

from fusion.answers.images import FORMATS, MAX_PIXELS, decode
from fusion.errors import ImageError


def encoded(image: Image.Image, kind: str, **how: Any) -> bytes:
    body = io.BytesIO()
    image.save(body, kind, **how)
    return body.getvalue()


def noise(size: tuple[int, int] = (40, 24), mode: str = "RGB", seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("kind", FORMATS)
def test_every_accepted_format_gives_pillows_own_pixels(kind: str, mode: str) -> None:
    body = encoded(noise(mode=mode), kind)
    image = decode(body, "x")
    assert image.mode == "RGB"
    assert image.tobytes() == Image.open(io.BytesIO(body)).convert("RGB").tobytes()


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "WEBP", "PNG", "AVIF"])
def test_of_several_frames_the_first_is_decoded(kind: str) -> None:
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "blue")]
    image = decode(encoded(frames[0], kind, save_all=True, append_images=frames[1:]), "x")
    red, _, blue = image.getpixel((16, 16))  # type: ignore[misc]
    assert red > 200 > 50 > blue


@pytest.mark.parametrize("kind", ["EPS", "PDF", "ICO", "TGA"])
def test_other_formats_are_refused_with_those_that_are_accepted(kind: str) -> None:
    with pytest.raises(ImageError, match=r"cat is not an image \(JPEG, .* are accepted\)"):
        decode(encoded(noise(), kind), "cat")


def test_an_image_of_the_limit_is_decoded_and_one_pixel_more_is_not() -> None:
    body = encoded(noise((40, 24)), "PNG")
    assert decode(body, "x", max_pixels=960).size == (40, 24)
    with pytest.raises(ImageError, match="x has 40 x 24 pixels, more than the 959"):
        decode(body, "x", max_pixels=959)


def test_the_limit_is_pillows_own_threshold() -> None:
    assert MAX_PIXELS == Image.MAX_IMAGE_PIXELS


SHAPES = [(40, 40), (64, 1), (1, 64), (65, 1), (1, 65), (95, 1), (1, 95), (97, 1), (1, 97), (300, 1)]


@pytest.mark.parametrize("size", [32, (32, 48)])
@pytest.mark.parametrize("shape", SHAPES)
def test_an_image_is_refused_when_its_short_side_would_vanish_in_resizing(
    shape: tuple[int, int], size: int | tuple[int, int]
) -> None:
    cfg = PreprocessCfg(size=size, resize_mode="longest")
    body = encoded(noise(shape), "PNG")
    try:
        image_transform_v2(cfg, is_train=False)(decode(body, "thin"))
    except ValueError:
        with pytest.raises(ImageError, match=r"thin is .* too long and thin"):
            decode(body, "thin", preprocess=cfg)
    else:
        assert decode(body, "thin", preprocess=cfg).size == shape


@pytest.mark.parametrize("shape", SHAPES)
def test_an_image_is_refused_when_resizing_would_make_it_too_large(shape: tuple[int, int]) -> None:
    body = encoded(noise(shape), "PNG")
    limit = 32 * 32 * 96
    shortest, squash = (PreprocessCfg(size=32, resize_mode=mode) for mode in ("shortest", "squash"))
    assert decode(body, "thin", max_pixels=limit, preprocess=squash).size == shape
    if max(shape) <= 96 * min(shape):
        assert decode(body, "thin", max_pixels=limit, preprocess=shortest).size == shape
    else:
        with pytest.raises(ImageError, match=r"thin is .* too long and thin"):
            decode(body, "thin", max_pixels=limit, preprocess=shortest)
