"""The decoder: what people's programs write looks as it was meant to, all else is an error that names the image."""

from __future__ import annotations

import io
import struct
import subprocess
import sys

import numpy as np
import pytest
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image, ImageCms

from fusion.answers.images import FORMATS, MAX_PIXELS, decode, format_of
from fusion.answers.rgb import to_rgb
from fusion.errors import ConfigError, ImageError
from tests.fusion.answers.pictures import (
    cmyk,
    cmyk_jpeg_without_adobe,
    encoded,
    glyph,
    on_transparency,
    scene,
    sixteen_bits,
    swapped_primaries,
    turned,
)


def noise(size: tuple[int, int] = (40, 24), mode: str = "RGB", seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("kind", FORMATS)
def test_every_accepted_format_gives_pillows_own_pixels(kind: str, mode: str) -> None:
    body = encoded(noise(mode=mode), kind)
    image = decode(body, "x")
    assert image.mode == "RGB"
    assert format_of(body) == kind
    assert image.tobytes() == Image.open(io.BytesIO(body)).convert("RGB").tobytes()


@pytest.mark.processes
def test_no_other_plugin_of_pillow_is_loaded_whatever_the_bytes_are() -> None:
    code = (
        "import sys, contextlib; from fusion.answers.images import decode\n"
        "for body in (b'%!PS-Adobe-3.0', b'hello', b'8BPS', b'II*' + bytes(90)):\n"
        "    with contextlib.suppress(ValueError): decode(body, 'x')\n"
        "print(*sorted(n for n in sys.modules if n.startswith('PIL.') and n.endswith('Plugin')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert {"PIL.EpsImagePlugin", "PIL.PsdImagePlugin", "PIL.FpxImagePlugin"}.isdisjoint(done.stdout.split())
    assert "PIL.JpegImagePlugin" in done.stdout


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


# the same picture as cameras, scanners and drawing programs store it


def differs(body: bytes, wanted: Image.Image, *, background: str | None = None) -> float:
    """Mean absolute difference of what is decoded to the picture that was meant, in levels of 255."""
    image = decode(body, "x", background=background)
    assert image.size == wanted.size
    return float(np.abs(np.asarray(image).astype(int) - np.asarray(wanted.convert("RGB")).astype(int)).mean())


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_a_photo_is_turned_as_its_exif_says(kind: str, orientation: int) -> None:
    pixels, exif = turned(scene(), orientation)
    how = {"lossless": True} if kind == "WEBP" else {"quality": 95} if kind in ("JPEG", "AVIF") else {}
    assert differs(encoded(pixels, kind, exif=exif, **how), scene()) < 3


def test_a_photo_is_turned_once_however_often_it_passes_the_decoder() -> None:
    pixels, exif = turned(scene(), 6)
    once = decode(encoded(pixels, "PNG", exif=exif), "x")
    assert to_rgb(once).tobytes() == once.tobytes()


def test_an_exif_block_that_nobody_can_parse_leaves_the_pixels_as_they_are() -> None:
    assert differs(encoded(scene(), "PNG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff"), scene()) == 0


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM", "JPEG2000"])
def test_sixteen_bits_are_scaled_not_cut(kind: str) -> None:
    grey = scene(grey=True)
    assert differs(encoded(sixteen_bits(grey), kind), grey) < 1


def test_a_tiff_says_itself_how_many_bits_are_white() -> None:
    grey = scene(grey=True)
    twelve = np.asarray(grey.convert("L")).astype(np.uint16) << 4
    body = bytearray(encoded(Image.fromarray(twelve), "TIFF"))
    at = body.index(struct.pack("<HHI", 258, 3, 1)) + 8
    packed = b"".join(  # 12 bits per sample: two samples in three bytes, high bits first
        bytes([a >> 4, (a & 15) << 4 | b >> 8, b & 255]) for a, b in twelve.reshape(-1, 2).tolist()
    )
    body[at : at + 2] = struct.pack("<H", 12)
    strip = body.index(struct.pack("<HHI", 273, 4, 1)) + 8
    offset = struct.unpack("<I", body[strip : strip + 4])[0]
    counts = body.index(struct.pack("<HHI", 279, 4, 1)) + 8
    body[counts : counts + 4] = struct.pack("<I", len(packed))
    assert differs(bytes(body[:offset]) + packed, grey) < 1


@pytest.mark.parametrize("white", [1.0, 255.0, 65535.0])
def test_floats_are_scaled_to_the_white_that_their_values_mean(white: float) -> None:
    grey = scene(grey=True)
    values = np.asarray(grey.convert("L")).astype(np.float32) / 255 * white
    assert differs(encoded(Image.fromarray(values), "TIFF"), grey) < 1


@pytest.mark.parametrize(
    ("values", "says"), [([0.0, -3.0], "from -3 to 0"), ([0.0, 1e9], "to 1e.09"), ([0.5, np.nan], "NaN")]
)
def test_floats_without_a_known_black_and_white_are_refused_by_name(values: list[float], says: str) -> None:
    body = encoded(Image.fromarray(np.array([values], np.float32)), "TIFF")
    with pytest.raises(ImageError, match=f"scan holds.*{says}"):
        decode(body, "scan")


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "AVIF", "JPEG2000"])
def test_transparency_lies_on_white(kind: str) -> None:
    how = {"lossless": True} if kind == "WEBP" else {"quality": 95} if kind == "AVIF" else {}
    assert differs(encoded(on_transparency(glyph()), kind, **how), glyph()) < 2


def test_transparency_lies_on_the_colour_that_is_asked_for() -> None:
    body = encoded(Image.new("RGBA", (4, 4), (9, 9, 9, 0)), "PNG")
    assert decode(body, "x", background="#102030").getpixel((0, 0)) == (16, 32, 48)
    assert decode(body, "x", background="navy").getpixel((0, 0)) == (0, 0, 128)
    with pytest.raises(ConfigError, match="'sky' is not an opaque colour"):
        decode(body, "x", background="sky")


def test_half_transparent_pixels_are_mixed_with_the_background() -> None:
    body = encoded(Image.new("RGBA", (4, 4), (0, 0, 0, 128)), "PNG")
    assert decode(body, "x").getpixel((0, 0)) == (127, 127, 127)


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_a_palette_with_a_transparent_colour_lies_on_white(kind: str) -> None:
    drawing = glyph().quantize(2)
    white = drawing.getpixel((0, 0))
    palette = drawing.getpalette()
    assert palette is not None
    palette[3 * white : 3 * white + 3] = [0, 0, 0]  # what programs leave under transparent pixels
    drawing.putpalette(palette)
    assert differs(encoded(drawing, kind, transparency=white), glyph()) == 0


def test_a_palette_whose_colours_fade_lies_on_white() -> None:
    drawing = glyph().quantize(2)
    white = drawing.getpixel((0, 0))
    alphas = bytes(0 if index == white else 255 for index in range(2))
    assert differs(encoded(drawing, "PNG", transparency=alphas), glyph()) == 0


def test_grey_with_alpha_and_grey_with_a_transparent_value_lie_on_white() -> None:
    assert differs(encoded(on_transparency(glyph()).convert("LA"), "PNG"), glyph()) == 0
    inverse = Image.eval(glyph().convert("L"), lambda value: 40 if value else 200)  # 40 is transparent
    wanted = Image.eval(glyph().convert("L"), lambda value: 255 if value else 200)
    assert differs(encoded(inverse, "PNG", transparency=40), wanted) == 0
    assert differs(encoded(sixteen_bits(inverse), "PNG", transparency=40 * 257), wanted) == 0


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP", "PPM", "GIF"])
def test_one_bit_is_black_and_white(kind: str) -> None:
    assert differs(encoded(glyph().convert("1"), kind), glyph()) == 0


def test_cmyk_is_read_with_and_without_adobes_inversion() -> None:
    assert differs(encoded(cmyk(scene()), "JPEG", quality=95), scene()) < 3
    assert differs(cmyk_jpeg_without_adobe(scene()), scene()) < 3
    assert differs(encoded(cmyk(scene()), "TIFF"), scene()) < 1


def test_colours_are_converted_to_srgb_by_the_icc_profile() -> None:
    pixels, profile = swapped_primaries(scene())
    for kind in ("PNG", "JPEG", "TIFF", "WEBP"):
        how = {"lossless": True} if kind == "WEBP" else {"quality": 95} if kind == "JPEG" else {}
        assert differs(encoded(pixels, kind, icc_profile=profile, **how), scene()) < 4, kind


def test_transparency_and_an_icc_profile_go_together() -> None:
    pixels, profile = swapped_primaries(scene())
    pixels.putalpha(Image.new("L", pixels.size, 255))
    assert differs(encoded(pixels, "PNG", icc_profile=profile), scene()) < 2


@pytest.mark.parametrize("profile", [b"not a profile", b""])
def test_a_profile_that_can_t_be_read_is_left_out(profile: bytes) -> None:
    assert differs(encoded(scene(), "PNG", icc_profile=profile), scene()) == 0


def test_lab_is_converted() -> None:
    lab = ImageCms.profileToProfile(
        scene(), ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    )
    assert lab is not None
    assert differs(encoded(lab, "TIFF"), scene()) < 3


def test_a_photo_with_a_second_picture_behind_it_is_its_first() -> None:
    body = encoded(scene(), "MPO", save_all=True, append_images=[glyph()], quality=95)
    assert differs(body, scene()) < 3


@pytest.mark.parametrize("kind", FORMATS)
def test_a_damaged_file_is_an_image_error_that_names_it(kind: str) -> None:
    body = encoded(noise(), kind)
    for length in (len(body) // 3, len(body) // 2, len(body) - len(body) // 6):
        with pytest.raises(ImageError, match=r"^web\.jpg "):
            decode(body[:length], "web.jpg")


@pytest.mark.parametrize(
    ("start", "kind"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
        (b"%PDF-1.7\n", "PDF"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"#?RADIANCE\n", "Radiance HDR"),
    ],
)
def test_what_people_take_for_an_image_is_named_with_what_to_do(start: bytes, kind: str) -> None:
    with pytest.raises(ImageError, match=rf"photo is not an image .* but {kind}: export it as JPEG or PNG"):
        decode(start + bytes(100), "photo")
