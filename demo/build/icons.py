"""SVG icon sets and emoji to pixels.

An `@iconify-json` package is one `icons.json`: bodies of SVGs with their view boxes. Pictures are kept as RGBA
(alpha and all), because the base's training draws its own backgrounds and tasks want a plain white one.
"""

import json
import re
from functools import lru_cache
from io import BytesIO
from pathlib import Path

import numpy as np
import resvg_py
from PIL import Image, ImageChops

from demo.build.packages import LICENCES
from demo.build.sources import npm_folder

STYLE_SUFFIX = re.compile(
    r"-(fill|filled|line|outline|outlined|bold|duotone|broken|linear|regular|light|thin|color|solid|sharp|rounded"
    r"|round|remix|flat|twotone|loop|static|transition|alt|[0-9]+)$"
)


def plain_name(name: str) -> str:
    """`sun-cloudy-fill`, `sun-cloudy-24-regular` -> `sun-cloudy`: the thing without the style."""
    while (shorter := STYLE_SUFFIX.sub("", name)) != name:
        name = shorter
    return name


@lru_cache(maxsize=2)
def load_set(cache: Path, name: str) -> dict[str, str]:
    """All icons of one set as SVG text by name; aliases and hidden icons are left out.

    Raises:
        ValueError: the package states another licence than `packages.LICENCES` does.
    """
    folder = npm_folder(cache, f"@iconify-json/{name}")
    stated = json.loads((folder / "info.json").read_text())["license"]["spdx"]
    if name not in LICENCES.get(stated, "").split():
        raise ValueError(f"icon set {name} states the licence {stated}; packages.LICENCES has it elsewhere")
    data = json.loads((folder / "icons.json").read_text())
    side = 16  # iconify's own default
    svgs = {}
    for icon_name, icon in data["icons"].items():
        if icon.get("hidden"):
            continue
        left, top = (icon.get(key, data.get(key, 0)) for key in ("left", "top"))
        width, height = (icon.get(key, data.get(key, side)) for key in ("width", "height"))
        body = icon["body"].replace("currentColor", "#000")
        svgs[icon_name] = (
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="{left} {top} {width} {height}">{body}</svg>'
        )
    return svgs


def render_svg(svg: str, size: int) -> Image.Image:
    """The SVG as a size x size RGBA picture: drawn at twice the size, then fitted."""
    png = resvg_py.svg_to_bytes(svg_string=svg, width=2 * size, skip_system_fonts=True)
    return fit(Image.open(BytesIO(bytes(png))), size)


def fit(image: Image.Image, size: int) -> Image.Image:
    """Centre `image` in a transparent square, aspect kept; Lanczos on premultiplied alpha, so no dark
    fringes."""
    image = image.convert("RGBA")
    scale = size / max(image.size)
    target = tuple(max(1, round(side * scale)) for side in image.size)
    if target != image.size:
        image = image.convert("RGBa").resize(target, Image.Resampling.LANCZOS).convert("RGBA")
    square = Image.new("RGBA", (size, size))
    square.paste(image, ((size - target[0]) // 2, (size - target[1]) // 2))
    return square


def trim(image: Image.Image) -> Image.Image:
    """Cut away transparent and white margins: many drawings are a stamp in the corner of a page."""
    shown = ImageChops.difference(on_white(image), Image.new("RGB", image.size, "white"))
    return image.crop(box) if (box := shown.getbbox()) else image


def on_white(image: Image.Image) -> Image.Image:
    """RGB with white where the picture is transparent."""
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")


def is_blank(image: Image.Image) -> bool:
    """True for a picture that shows nothing on white (a failed render, or white on transparent)."""
    return float(np.asarray(on_white(image), dtype=np.float32).std()) < 3.0
