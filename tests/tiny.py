"""A CLIP and tasks small enough for tests: a ViT of two layers, and pictures whose class is a colour or a shape."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from fusion.answers.clip import build_clip
from fusion.store import Store
from fusion.store.blobs import BlobRef, scratch_file
from fusion.tensors import write_tensors
from fusion.versions.bases import Base, put_base

MODEL_CFG: dict[str, Any] = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}
"""1.8 million parameters, nearly all of them the token table."""

BATCH_NORM_CFG: dict[str, Any] = {
    **MODEL_CFG,
    "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 16, "head_width": 8},
}
"""The same with a small ResNet for images, which has BatchNorm statistics."""

PREPROCESS_CFG: dict[str, Any] = {
    "size": 32,
    "mode": "RGB",
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
    "interpolation": "bicubic",
    "resize_mode": "shortest",
    "fill_color": 0,
}

COLOURS = {"red": (220, 40, 40), "green": (40, 170, 60), "blue": (40, 70, 220), "yellow": (230, 210, 40)}
SHAPES = ("circle", "square", "triangle")


def tiny_base(
    store: Store, *, seed: int = 0, model_cfg: dict[str, Any] = MODEL_CFG, architecture: str = "tiny"
) -> Base:
    """A base with random weights, kept in the store."""
    unbuilt = Base(BlobRef("", "0" * 64, 0), architecture, model_cfg, PREPROCESS_CFG)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        clip = build_clip(unbuilt, None)
    with scratch_file(store) as path:
        write_tensors(path, {name: tensor.contiguous() for name, tensor in clip.model.state_dict().items()})
        return put_base(store, path, architecture=architecture, model_cfg=model_cfg, preprocess_cfg=PREPROCESS_CFG)


def picture(name: str, random: np.random.Generator, *, size: int = 36) -> Image.Image:
    """One picture of a class: a square of that colour, or that shape in black, somewhere on a noisy light ground."""
    ground = random.integers(200, 256, (size, size, 3), dtype=np.uint8)
    image = Image.fromarray(ground)
    draw = ImageDraw.Draw(image)
    side = int(random.integers(size // 2, size * 3 // 4))
    left, top = (int(random.integers(0, size - side)) for _ in range(2))
    box = (left, top, left + side, top + side)
    if name == "circle":
        draw.ellipse(box, fill=(0, 0, 0))
    elif name == "triangle":
        draw.polygon([(left, top + side), (left + side, top + side), (left + side // 2, top)], fill=(0, 0, 0))
    else:
        draw.rectangle(box, fill=COLOURS.get(name, (0, 0, 0)))
    return image


def tiny_task(
    folder: Path,
    *,
    classes: Sequence[str] = tuple(COLOURS),
    num_train: int = 12,
    num_test: int = 5,
    templates: Sequence[str] | None = ("a {} picture.", "{}."),
    seed: int = 0,
) -> str:
    """Write a task as `train/` and `test/` of class folders; returns its source. `classes`: `COLOURS` or `SHAPES`."""
    random = np.random.default_rng(seed)
    for split, count in (("train", num_train), ("test", num_test)):
        for name in classes:
            (folder / split / name).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                picture(name, random).save(folder / split / name / f"{number:03d}.png")
    task: dict[str, Any] = {"name": folder.name, "classes": list(classes)}
    if templates is not None:
        task["templates"] = list(templates)
    (folder / "task.json").write_text(json.dumps(task))
    return str(folder)


def tiny_parquet(folder: Path, source: str) -> str:
    """The same task as `source` (of `tiny_task`), as Parquet in another folder, rows in another order."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    task = json.loads((Path(source) / "task.json").read_text())
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "test"):
        rows = [
            (path.read_bytes(), label)
            for label, name in enumerate(task["classes"])
            for path in sorted((Path(source) / split / name).iterdir(), reverse=True)
        ][::-1]
        table = pa.table(
            {"image": [image for image, _ in rows], "label": pa.array([label for _, label in rows], pa.int32())}
        )
        pq.write_table(table, folder / f"{split}.parquet")
    (folder / "task.json").write_text(json.dumps(task))
    return str(folder)
