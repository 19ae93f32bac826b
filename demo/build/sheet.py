"""Contact sheets: look at what a task really shows before anything is trained on it.

python -m demo.build.sheet demo/tasks/food/test.parquet OUT.png
"""

import json
import sys
from collections import defaultdict
from io import BytesIO
from pathlib import Path

import pyarrow.parquet as pq
from PIL import Image, ImageDraw


def draw_sheet(parquet: Path, out: Path, *, columns: int = 24, cell: int = 56) -> None:
    """One row (or more) a class, the class's name at its left."""
    classes = json.loads((parquet.parent / "task.json").read_text())["classes"]
    table = pq.read_table(parquet)
    rows = defaultdict(list)
    for image, label in zip(table["image"].to_pylist(), table["label"].to_pylist(), strict=True):
        rows[label].append(Image.open(BytesIO(image)).convert("RGB").resize((cell - 2, cell - 2)))
    lines = [
        (label, rows[label][i : i + columns]) for label in sorted(rows) for i in range(0, len(rows[label]), columns)
    ]
    sheet = Image.new("RGB", (120 + columns * cell, len(lines) * cell), "grey")
    draw = ImageDraw.Draw(sheet)
    for y, (label, images) in enumerate(lines):
        draw.text((2, y * cell + 20), classes[label], fill="white")
        for x, image in enumerate(images):
            sheet.paste(image, (120 + x * cell, y * cell))
    sheet.save(out)


if __name__ == "__main__":
    draw_sheet(Path(sys.argv[1]), Path(sys.argv[2]))
