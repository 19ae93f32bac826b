"""`torchvision:NAME`: torchvision's data sets as tasks.

They are read from `$CONDU_TORCHVISION_ROOT` (default `~/.cache/condu/torchvision`) on every node that trains, and
downloaded to it where torchvision is able to. Some of torchvision's readers (CIFAR) unpickle files after comparing
their MD5.
"""

from __future__ import annotations

import fcntl
import functools
import inspect
import io
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fusion.errors import DataError
from training.data.images import Rows, Sample, made_rows, sha256_of
from training.data.raw_task import RawTask, cut

PREFIX = "torchvision:"

_TRAIN_SPLITS = {"FGVCAircraft": "trainval", "OxfordIIITPet": "trainval"}
_TEMPLATES = {
    "Caltech101": ("a photo of a {}.", "a painting of a {}.", "a drawing of a {}."),
    "CIFAR10": ("a photo of a {}.", "a blurry photo of a {}.", "a low resolution photo of a {}."),
    "CIFAR100": ("a photo of a {}.", "a blurry photo of a {}.", "a low resolution photo of a {}."),
    "DTD": ("a photo of a {} texture.", "a photo of a {} pattern.", "a photo of a {} thing."),
    "EuroSAT": ("a centered satellite photo of {}.", "a centered satellite photo of a {}."),
    "FashionMNIST": ("a photo of a {}.",),
    "FGVCAircraft": ("a photo of a {}, a type of aircraft.",),
    "Flowers102": ("a photo of a {}, a type of flower.",),
    "Food101": ("a photo of {}, a type of food.",),
    "MNIST": ('a photo of the number: "{}".',),
    "OxfordIIITPet": ("a photo of a {}, a type of pet.",),
    "StanfordCars": ("a photo of a {}.", "a photo of my {}."),
    "SUN397": ("a photo of a {}.", "a photo of the {}."),
}


def read_torchvision(source: str) -> RawTask:
    """Read `torchvision:NAME`, downloading it first if necessary and possible. Raises `DataError`."""
    from torchvision import datasets

    name = source.removeprefix(PREFIX)
    factory = getattr(datasets, name, None)
    if not (inspect.isclass(factory) and issubclass(factory, datasets.VisionDataset)) or name in (
        "VisionDataset",
        "FakeData",
    ):
        raise DataError(f"torchvision has no data set {name!r}: use the name of its class, such as torchvision:DTD")
    root = Path(
        os.environ.get("CONDU_TORCHVISION_ROOT") or Path.home() / ".cache" / "condu" / "torchvision"
    ).expanduser()
    parameters = inspect.signature(factory).parameters
    make = functools.partial(_make, name, factory, root, "download" in parameters)
    if "split" in parameters:
        train, test = make(split=_TRAIN_SPLITS.get(name, "train")), make(split="test")
    elif "train" in parameters:
        train, test = make(train=True), make(train=False)
    else:
        train, test = make(), None
    shown = _samples(name, train)
    if test is not None:
        hidden = _samples(name, test)
    else:
        shown, hidden = cut(shown)
    return RawTask(_classes(name, train), _TEMPLATES.get(name), shown, hidden, layout="torchvision")


def _make(name: str, factory: Callable[..., Any], root: Path, can_download: bool, **arguments: Any) -> Any:
    """The data set as found there, or downloaded once, however many processes of a node ask at the same time."""
    try:
        return factory(str(root), **arguments)
    except (RuntimeError, OSError) as error:
        if not can_download:
            raise DataError(
                f"{PREFIX}{name} is not under {root}, and torchvision can't download it ({error}): put it there"
            ) from error
    try:
        with _one_at_a_time(root / f".{name}.lock"):
            return factory(str(root), download=True, **arguments)
    except Exception as error:  # a dead link, a moved page, a full disk: torchvision and urllib raise many kinds
        raise DataError(
            f"{PREFIX}{name} can't be downloaded ({error}): put it under {root}, in torchvision's own layout, or "
            "set CONDU_TORCHVISION_ROOT to the folder that has it"
        ) from error


@contextmanager
def _one_at_a_time(lock: Path) -> Iterator[None]:
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _classes(name: str, dataset: Any) -> tuple[str, ...]:
    for attribute in ("classes", "categories"):
        if names := getattr(dataset, attribute, None):
            return tuple(_spoken(str(item)) for item in names)
    raise DataError(f"{PREFIX}{name} has no class names: give `classes`, or convert it to class folders")


def _spoken(name: str) -> str:
    """A class name as people say it: `annual crop` for AnnualCrop, `7` for `7 - seven`."""
    name = re.sub(r"^(\d+) - \w+$", r"\1", name)
    name = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower() if re.fullmatch(r"(?:[A-Z][a-z]+)+", name) else name
    return re.sub(r"[_/]+", " ", name).strip()


def _samples(name: str, dataset: Any) -> Rows:
    labels, paths = _labels(dataset), _paths(dataset)
    samples: list[Sample] = []
    made: list[Callable[[], bytes]] = []
    for index, label in enumerate(labels):
        if paths is not None:
            made.append(paths[index].read_bytes)
            samples.append(Sample(label, sha256_of(made[-1]()), str(paths[index])))
        else:
            image = dataset[index][0]
            pixels = sha256_of(f"{image.mode} {image.size}".encode() + image.tobytes())
            made.append(functools.partial(_png, dataset, index))
            samples.append(Sample(label, pixels, f"{PREFIX}{name} image {index}"))
    return made_rows(samples, made, hashes_bytes=paths is not None)


def _labels(dataset: Any) -> list[int]:
    """Labels, without decoding images if the data set stores labels separately, as almost all do."""
    for attribute in ("targets", "_labels", "labels", "y"):
        values = getattr(dataset, attribute, None)
        if values is not None and len(values) == len(dataset):
            return [int(value) for value in np.asarray(values).tolist()]
    pairs = _pairs(dataset)
    return [int(pair[1]) for pair in pairs] if pairs else [int(dataset[index][1]) for index in range(len(dataset))]


def _paths(dataset: Any) -> list[Path] | None:
    """The images' own files, if the data set consists of files."""
    for attribute in ("_image_files", "_images"):
        values = getattr(dataset, attribute, None)
        if isinstance(values, Sequence) and len(values) == len(dataset):
            return [Path(value) for value in values]
    pairs = _pairs(dataset)
    return [Path(pair[0]) for pair in pairs] if pairs and isinstance(pairs[0][0], str | Path) else None


def _pairs(dataset: Any) -> Sequence[tuple[Any, Any]] | None:
    for attribute in ("_samples", "samples"):
        values = getattr(dataset, attribute, None)
        if isinstance(values, Sequence) and len(values) == len(dataset):
            return values
    return None


def _png(dataset: Any, index: int) -> bytes:
    buffer = io.BytesIO()
    image: Image.Image = dataset[index][0]
    image.save(buffer, "PNG")
    return buffer.getvalue()
