"""Data of any size for benchmarks of training: images of noise whose class is a tint, in folders or in Parquet."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("red", "green", "blue", "grey")
_TINTS = np.array([[60, 0, 0], [0, 60, 0], [0, 0, 60], [0, 0, 0]], np.uint8)
PARQUET_SIDE = 640
_GROUP_ROWS = 25


def write_folders(folder: Path, *, num_train: int, num_test: int, side: int = 32, seed: int = 0) -> str:
    """Class folders of PNG files; returns the source."""
    random = np.random.default_rng(seed)
    for split, count in (("train", num_train), ("test", num_test)):
        for label, name in enumerate(CLASSES):
            (folder / split / name).mkdir(parents=True)
            for number in range(count // len(CLASSES)):
                (folder / split / name / f"{number:06d}.png").write_bytes(_image(random, label, side, level=1))
    (folder / "task.json").write_text(json.dumps({"classes": CLASSES}))
    return str(folder)


def write_parquet(folder: Path, *, num_bytes: int) -> str:
    """`train.parquet` of about so many bytes, rows in random order, row groups of 30 MB; returns the source."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    random = np.random.default_rng(0)
    folder.mkdir(parents=True)
    schema = pa.schema([("image", pa.binary()), ("label", pa.int32())])
    for split, wanted in (("train", num_bytes), ("test", 1)):
        written = 0
        with pq.ParquetWriter(folder / f"{split}.parquet", schema) as writer:
            while written < wanted:
                labels = random.integers(0, len(CLASSES), _GROUP_ROWS, dtype=np.int32)
                images = [_image(random, int(label), PARQUET_SIDE, level=0) for label in labels]
                writer.write_table(pa.table({"image": images, "label": labels}, schema))
                written += sum(map(len, images))
    (folder / "task.json").write_text(json.dumps({"classes": CLASSES}))
    return str(folder)


def _image(random: np.random.Generator, label: int, side: int, *, level: int) -> bytes:
    pixels = random.integers(0, 196, (side, side, 3), dtype=np.uint8) + _TINTS[label]
    body = io.BytesIO()
    Image.fromarray(pixels).save(body, "PNG", compress_level=level)
    return body.getvalue()
