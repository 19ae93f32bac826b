"""What is in a data set, and what in it would spoil a training: broken, doubled, leaked, tiny and lopsided images.

Every image is decoded once, in threads; what is kept of each is its size, its format and a fingerprint of 64 bytes.
Two images are near duplicates if their fingerprints, their grey values at 16 x 16 pixels, hardly differ: scaled,
recompressed and slightly recoloured copies are found, crops and mirrored ones are not.

Letters: N images.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from fusion.answers.images import format_of
from fusion.errors import DataError
from training.data.contact_sheet import contact_sheet
from training.data.images import ImageSet, Sample
from training.data.task_data import TaskData

MIN_SIDE = 32
"""Pixels of the shorter side below which an image is called tiny: less than any CLIP has patches for."""
MAX_PIXELS = 25_000_000
"""Above this an image is called huge: decoding it takes longer than training on it."""
MAX_IMBALANCE = 10.0
"""Largest class over smallest, above which `balanced` is worth a thought."""
_SIDE = 16
_NEAR = 3.0
"""Mean difference of fingerprints, in levels of 255, up to which two images are near duplicates."""
_FLAT = 6.0
"""Standard deviation of a fingerprint below which it is too plain to tell images apart."""
_ROWS_AT_ONCE = 1024


@dataclass(frozen=True)
class Finding:
    """One thing to know about a data set.

    Attributes:
        kind: such as `broken` or `leak`.
        message: what was found and what to do.
        images: which ones, by their names in messages.
        serious: whether training goes wrong with it, or figures would lie.
    """

    kind: str
    message: str
    images: tuple[str, ...] = ()
    serious: bool = False


@dataclass(frozen=True)
class DataReport:
    """What the loader understood, and what was found.

    Attributes:
        counts: class to its number of images to train and to test.
        formats: name of an image format to the number of files.
    """

    data: TaskData
    counts: Mapping[str, tuple[int, int]]
    formats: Mapping[str, int]
    findings: tuple[Finding, ...] = field(default_factory=tuple)

    @property
    def ok(self) -> bool:
        """Whether nothing serious was found."""
        return not any(finding.serious for finding in self.findings)


@dataclass(frozen=True)
class _Look:
    """One image, looked at: what is wrong with it, or its size, format and fingerprint (uint8 [256])."""

    problem: str | None
    size: tuple[int, int] = (0, 0)
    kind: str = ""
    print: np.ndarray | None = None


def check_data(data: TaskData) -> DataReport:
    """Look at every image of both splits. `data` may be loaded without `verify`."""
    looks = {split: _look(images) for split, images in (("train", data.train), ("test", data.test))}
    origins = {
        split: [sample.origin for sample in images.samples]
        for split, images in (("train", data.train), ("test", data.test))
    }
    everything = [look for part in looks.values() for look in part]
    names = [origin for part in origins.values() for origin in part]
    counts = {name: _count(data, label) for label, name in enumerate(data.classes)}
    findings = [
        *_broken(everything),
        *_doubled(data),
        *_near(data, looks["train"] + looks["test"], names),
        *_sizes(everything, names),
        *_balance(counts),
        *(Finding("understood", warning, serious=False) for warning in data.warnings),
    ]
    formats = Counter(look.kind for look in everything if look.kind)
    return DataReport(data, counts, dict(formats.most_common()), tuple(findings))


def class_sheet(images: ImageSet, label: int, *, most: int = 100, cell: int = 64) -> Image.Image:
    """The first images of one class side by side, RGB; a broken one is a grey cell."""

    def pictures() -> Iterator[Image.Image | None]:
        for index in np.flatnonzero(images.labels == label)[:most].tolist():
            try:
                yield images.image(index)
            except DataError:
                yield None

    return contact_sheet(pictures(), cell=cell)


def _look(images: ImageSet) -> list[_Look]:
    def one(index: int) -> _Look:
        try:
            encoded = images.encoded(index)
            image = images.image(index)
        except DataError as error:
            return _Look(str(error))
        grey = image.convert("L").resize((_SIDE, _SIDE), Image.Resampling.BOX)
        return _Look(None, image.size, format_of(encoded), np.asarray(grey).reshape(-1))

    order = images.blocks.order.tolist()
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        looks = dict(zip(order, pool.map(one, order), strict=True))
    return [looks[index] for index in range(len(images))]


def _count(data: TaskData, label: int) -> tuple[int, int]:
    train, test = (int((images.labels == label).sum()) for images in (data.train, data.test))
    return train, test


def _broken(looks: Sequence[_Look]) -> list[Finding]:
    problems = [look.problem for look in looks if look.problem]
    if not problems:
        return []
    return [Finding("broken", f"{len(problems)} images can't be read: repair or delete them", tuple(problems), True)]


def _doubled(data: TaskData) -> list[Finding]:
    """Files that are equal byte for byte: within a split, across splits, and across classes."""
    found = []
    train = {sample.sha256: sample for sample in data.train.samples}
    leaked = [sample for sample in data.test.samples if sample.sha256 in train]
    if leaked:
        pairs = tuple(f"{sample.origin} = {train[sample.sha256].origin}" for sample in leaked)
        found.append(
            Finding("leak", f"{len(leaked)} test images are also training images: accuracy would lie", pairs, True)
        )
    for split, images in (("training", data.train), ("test", data.test)):
        first: dict[str, Sample] = {}
        same: list[str] = []
        torn: list[str] = []
        for sample in images.samples:
            before = first.setdefault(sample.sha256, sample)
            if before is not sample:
                (same if before.label == sample.label else torn).append(f"{sample.origin} = {before.origin}")
        if same:
            found.append(Finding("duplicate", f"{len(same)} {split} images are there twice", tuple(same)))
        if torn:
            message = f"{len(torn)} {split} images are in two classes: one of the labels is wrong"
            found.append(Finding("contradiction", message, tuple(torn), True))
    return found


def _near(data: TaskData, looks: Sequence[_Look], names: Sequence[str]) -> list[Finding]:
    """Pairs that look alike and are not the same file: within the training split, and across the splits."""
    hashes = [sample.sha256 for images in (data.train, data.test) for sample in images.samples]
    prints = {i: look.print for i, look in enumerate(looks) if look.print is not None and look.print.std() >= _FLAT}
    kept = list(prints)
    prints_N = np.stack(list(prints.values())).astype(np.float32) if prints else np.zeros((0, 1), np.float32)
    pairs = [(kept[i], kept[j]) for i, j in _close_pairs(prints_N) if hashes[kept[i]] != hashes[kept[j]]]
    border = len(data.train)
    across = tuple(f"{names[j]} ~ {names[i]}" for i, j in pairs if i < border <= j)
    within = tuple(f"{names[j]} ~ {names[i]}" for i, j in pairs if not i < border <= j)
    found = []
    if across:
        found.append(Finding("near leak", f"{len(across)} pairs of training and test image look alike", across))
    if within:
        found.append(Finding("near duplicate", f"{len(within)} pairs of images of one split look alike", within))
    return found


def _close_pairs(prints_N: np.ndarray) -> list[tuple[int, int]]:
    """Pairs i < j whose fingerprints differ by at most `_NEAR` on average.

    Sorted by their mean value, only neighbours whose means are that close can be a pair: the mean of a difference is at
    least the difference of the means.
    """
    means = prints_N.mean(1) if len(prints_N) else np.zeros(0)
    order = np.argsort(means, kind="stable")
    prints_N, means = prints_N[order], means[order]
    found = []
    for place in range(len(order)):
        last = int(np.searchsorted(means, means[place] + _NEAR, side="right"))
        for start in range(place + 1, last, _ROWS_AT_ONCE):
            others = prints_N[start : min(start + _ROWS_AT_ONCE, last)]
            near = np.flatnonzero(np.abs(others - prints_N[place]).mean(1) <= _NEAR)
            found += [tuple(sorted((int(order[place]), int(order[start + one])))) for one in near]
    return sorted((first, second) for first, second in found)


def _sizes(looks: Sequence[_Look], names: Sequence[str]) -> list[Finding]:
    seen = [(name, look.size) for name, look in zip(names, looks, strict=True) if look.problem is None]
    tiny = tuple(f"{name} ({w} x {h})" for name, (w, h) in seen if min(w, h) < MIN_SIDE)
    huge = tuple(f"{name} ({w} x {h})" for name, (w, h) in seen if w * h > MAX_PIXELS)
    found = []
    if tiny:
        found.append(Finding("tiny", f"{len(tiny)} images are smaller than {MIN_SIDE} pixels on a side", tiny))
    if huge:
        found.append(Finding("huge", f"{len(huge)} images have more than {MAX_PIXELS // 10**6} megapixels", huge))
    return found


def _balance(counts: Mapping[str, tuple[int, int]]) -> list[Finding]:
    trained = {name: train for name, (train, _) in counts.items() if train}
    if not trained:
        return []
    most, least = max(trained, key=trained.__getitem__), min(trained, key=trained.__getitem__)
    ratio = trained[most] / trained[least]
    if ratio <= MAX_IMBALANCE:
        return []
    message = f"{most!r} has {trained[most]} training images, {least!r} {trained[least]}: consider `balanced: true`"
    return [Finding("imbalance", message)]
