"""A task's pictures on their way to disk: no two alike, encoded, and written as Parquet beside `task.json`."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

NEAR_DUPLICATE = 2.0
"""Mean absolute difference, in grey levels of 0..255, below which two pictures of 24 x 24 count as one."""


@dataclass(frozen=True)
class Picture:
    """One labelled RGB picture and where it is from (`set/name`), for messages and contact sheets."""

    image: Image.Image
    label: int
    origin: str


@dataclass(frozen=True)
class TaskSpec:
    """What `task.json` says: the classes in label order, prompt templates, and whose pictures they are."""

    name: str
    classes: Sequence[str]
    templates: Sequence[str]
    source: str
    licence: str


def content_key(image: Image.Image) -> str:
    """sha256 over size and RGB pixels."""
    image = image.convert("RGB")
    return hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest()


def thumbnails(pictures: Sequence[Picture]) -> np.ndarray:
    """[P, 24 * 24 * 3] int16, for comparing pictures by eye's measure."""
    small = [np.asarray(p.image.convert("RGB").resize((24, 24), Image.Resampling.BOX)).ravel() for p in pictures]
    return np.stack(small).astype(np.int16)


def drop_repeats(pictures: Sequence[Picture]) -> list[Picture]:
    """Keep the first of pictures with equal pixels, whatever their labels."""
    seen: set[str] = set()
    return [p for p in pictures if (key := content_key(p.image)) not in seen and not seen.add(key)]


def drop_near(pictures: Sequence[Picture], others: Sequence[Picture]) -> list[Picture]:
    """Drop those of `pictures` that look like one of `others`, however their files differ."""
    if not pictures or not others:
        return list(pictures)
    theirs = thumbnails(others)
    nearest = [np.abs(theirs - mine).mean(1).min() for mine in thumbnails(pictures)]
    return [p for p, distance in zip(pictures, nearest, strict=True) if distance >= NEAR_DUPLICATE]


def cap(pictures: Sequence[Picture], num_per_class: int, seed: int) -> list[Picture]:
    """At most `num_per_class` random pictures of each class, in a random order."""
    rng = np.random.default_rng(seed)
    by_class: dict[int, list[Picture]] = defaultdict(list)
    for index in rng.permutation(len(pictures)):
        chosen = by_class[pictures[index].label]
        if len(chosen) < num_per_class:
            chosen.append(pictures[index])
    kept = [p for chosen in by_class.values() for p in chosen]
    return [kept[index] for index in rng.permutation(len(kept))]


def encode(image: Image.Image) -> bytes:
    """WebP: lossless where that is smaller (line art), else quality 90."""
    files = []
    for options in ({"lossless": True, "quality": 100}, {"quality": 90}):
        buffer = BytesIO()
        image.convert("RGB").save(buffer, "WEBP", method=6, **options)
        files.append(buffer.getvalue())
    return min(files, key=len)


def write_split(path: Path, pictures: Sequence[Picture]) -> None:
    table = pa.table(
        {
            "image": pa.array([encode(p.image) for p in pictures], pa.binary()),
            "label": pa.array([p.label for p in pictures], pa.int32()),
        }
    )
    pq.write_table(table, path, compression="none")  # the pictures are compressed already


def write_task(folder: Path, spec: TaskSpec, splits: dict[str, list[Picture]]) -> str:
    """Write one task; returns a line about it.

    Raises:
        ValueError: a class has no picture in some split.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for split, pictures in splits.items():
        counts = np.bincount([p.label for p in pictures], minlength=len(spec.classes))
        if (counts == 0).any():
            missing = [c for c, n in zip(spec.classes, counts, strict=True) if n == 0]
            raise ValueError(f"task {spec.name}: no {split} picture of {missing}")
        write_split(folder / f"{split}.parquet", pictures)
    (folder / "task.json").write_text(json.dumps(vars(spec), indent=1, default=list, ensure_ascii=False) + "\n")
    size_mb = sum(f.stat().st_size for f in folder.iterdir()) / 1e6
    return (
        f"{spec.name}: {len(spec.classes)} classes, "
        + ", ".join(f"{split} {len(pictures)}" for split, pictures in splits.items())
        + f", {size_mb:.2f} MB"
    )


def make_splits(
    train: Sequence[Picture], test: Sequence[Picture], *, train_cap: int, test_cap: int, seed: int = 0
) -> dict[str, list[Picture]]:
    """Test first, then train without anything that is, or looks like, a test picture."""
    test = cap(drop_repeats(test), test_cap, seed)
    train = drop_near(drop_repeats(train), test)
    return {"train": cap(train, train_cap, seed + 1), "test": test}
