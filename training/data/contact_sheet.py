"""Many images side by side in one picture, for people."""

from __future__ import annotations

from collections.abc import Iterable

from PIL import Image


def contact_sheet(pictures: Iterable[Image.Image | None], *, columns: int = 10, cell: int = 64) -> Image.Image:
    """Images in reading order, RGB, each within a square of `cell` pixels. None, which has no pixels, is a grey one."""
    cells = []
    for picture in pictures:
        small = picture.copy() if picture else Image.new("RGB", (cell, cell), "grey")
        small.thumbnail((cell - 2, cell - 2))
        cells.append(small)
    sheet = Image.new("RGB", (columns * cell, max(1, -(-len(cells) // columns)) * cell), "white")
    for place, small in enumerate(cells):
        sheet.paste(small, (place % columns * cell + 1, place // columns * cell + 1))
    return sheet
