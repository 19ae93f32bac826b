"""A task's data: named classes, prompt templates, and labelled images in two splits, from any kind of source.

The identity of a data set does not depend on where it is stored: `TaskData.sha256` is over contents, training images
are sorted by their hashes, and a missing test split is cut by content hash. So the same images in a folder, in Parquet
or in a bucket give the same expert. Contents are read once: a store keeps an index of them (`training.data.index`).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from fusion.answers.label_matching import alias_problems
from fusion.answers.prompts import DEFAULT_TEMPLATES, template_problem
from fusion.answers.rgb import parse_background
from fusion.answers.tokens import TextCheck, tokenizer_of
from fusion.errors import ConfigError, DataError
from fusion.store.address import StoreAddress
from fusion.store.blobs import canonical_json
from training.data.contents import Columns
from training.data.doubts import doubts, said_of_size
from training.data.images import ImageSet, Rows, raise_all
from training.data.index import DataIndex
from training.data.look import looked_at
from training.data.raw_task import RawTask
from training.data.scan import Scan
from training.data.sources import absolute_source, read_raw
from training.data.survey import Survey
from training.data.tree import read_tree
from training.data.zoo import PREFIX, read_torchvision

_IMAGES_AT_ONCE = 10_000


@dataclass(frozen=True)
class TaskData:
    """One task, ready to train and to measure.

    Attributes:
        name: the task's.
        classes: names, in the order of the labels.
        templates: prompt templates with `{}` in place of the class; training uses the first by default.
        train, test: images; `train` is empty for a task that is only tested.
        sha256: over the training images' hashes and labels, the classes and the templates.
        aliases: class to other texts that mean it, for callers.
        layout: how the source was read, such as `class folders`.
        notes: what was understood or left out, a sentence each.
        warnings: what is probably a mistake, a sentence each.
        validation: images that say when training stops; None: none are wanted, or training images are held out.
    """

    name: str
    classes: tuple[str, ...]
    templates: tuple[str, ...]
    train: ImageSet
    test: ImageSet
    sha256: str
    aliases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    layout: str = ""
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    validation: ImageSet | None = None

    @cached_property
    def looked_at(self) -> np.ndarray:
        """Which training images prototypes and evidence come from: indices, ascending (`training.data.look`)."""
        return looked_at(self.train)

    @cached_property
    def look(self) -> ImageSet:
        """These images."""
        return self.train if len(self.looked_at) == len(self.train) else self.train.take(self.looked_at)

    def summary(self) -> str:
        """What was understood of the source, in one line."""
        images = f"{len(self.train)} + {len(self.test)} images to train and test"
        if not len(self.train):
            images = f"{len(self.test)} images to test"
        counts = f"{len(self.classes)} classes, {images}"
        said = [f"{self.layout}, {counts}", *self.notes, *(f"WARNING: {warning}" for warning in self.warnings)]
        return "; ".join(said)


@dataclass(frozen=True)
class Choices:
    """What a configuration says of a task's data, in place of the source.

    Attributes:
        classes: names of the classes. Of numbered labels and folders in the order of the numbers; where the source has
            the same names, in any order.
        templates: if neither this nor the source has any, `a photo of a {}.`.
        aliases: class to other texts that mean it.
        background: colour under transparent pixels; if neither this nor the source has one, white.
        image_column, label_column: of a table that has several which would do.
        few_shot: keep only this many training images per class, the first in the order of their hashes.
        validation: read a validation split beside a test split, too.
    """

    classes: Sequence[str] | None = None
    templates: Sequence[str] | None = None
    aliases: Mapping[str, Sequence[str]] | None = None
    background: str | None = None
    image_column: str | None = None
    label_column: str | None = None
    few_shot: int | None = None
    validation: bool = False


@dataclass(frozen=True)
class Reading:
    """How data is read.

    Attributes:
        address: the store that keeps indices of data sets, and how S3 is reached; None: no index, and what boto3 finds.
        verify: decode every image that no index says was decoded; else a broken one is found only when it is used.
        refresh: read every file again, whatever the index says of it.
        scan: reads many files; None: threads of this process.
    """

    address: StoreAddress | None = None
    verify: bool = True
    refresh: bool = False
    scan: Scan | None = None

    def raw(self, source: str, columns: Columns, *, validation: bool = False) -> RawTask:
        """What a source holds. `validation`: see `Choices`. Raises `DataError`."""
        if source.startswith(PREFIX):
            return read_torchvision(source)
        tree = read_tree(source, self.address.options if self.address else None)
        index = DataIndex(self.address.open(), absolute_source(source), columns) if self.address else None
        with Survey(
            tree,
            columns=columns,
            index=index,
            scan=self.scan,
            verify=self.verify,
            refresh=self.refresh,
            validation=validation,
        ) as survey:
            raw = read_raw(tree, survey)
        return replace(raw, notes=(*raw.notes, *survey.notes))


def load_task_data(name: str, source: str, reading: Reading | None = None, **choices: Any) -> TaskData:
    """Read a task's data.

    Args:
        name: the task's name.
        source: `torchvision:NAME`, or a folder (path, `file://` or `s3://bucket/prefix/`) in one of the layouts of
            docs/data.md: class folders with or without splits, Parquet, WebDataset shards, or a list of files.
        reading: how; None: everything, without an index.
        choices: fields of `Choices`.
    Raises:
        DataError: names the folder, class, file or row, and all problems of one kind at once.
    """
    reading, chosen = reading or Reading(), Choices(**choices)
    raw = reading.raw(source, Columns(chosen.image_column, chosen.label_column), validation=chosen.validation)
    if raw.train is None:
        raise DataError(
            f"task {name!r}: {source} has a test split only: a task to train needs train/ (or train.parquet)"
        )
    data = _task_data(name, source, raw, chosen)
    counts = np.bincount(data.train.labels, minlength=len(data.classes))
    if empty := [data.classes[label] for label in np.flatnonzero(counts == 0)]:
        raise DataError(
            f"task {name!r}: no training images for {', '.join(map(repr, empty))} in {source}: add some, or remove the "
            "class" + ("" if chosen.few_shot is None or chosen.few_shot > 0 else " (few_shot is 0)")
        )
    if reading.verify:
        sets = [data.train, data.test, *([data.validation] if data.validation else [])]
        raise_all([f"task {name!r}: {problem}" for images in sets for problem in images.broken()])
    return data


def with_checked_texts(data: TaskData, model_cfg: Mapping[str, Any]) -> TaskData:
    """The data with a warning for prompts that the model of an architecture cuts.

    Raises `DataError` for classes that become the same tokens: nothing that is learned could tell them apart.
    """
    found = TextCheck(tokenizer_of(model_cfg), data.classes, data.templates)
    if problem := found.problem():
        raise DataError(f"task {data.name!r}: {problem}")
    warning = found.warning()
    return replace(data, warnings=(*data.warnings, warning)) if warning else data


def load_test_data(name: str, source: str, reading: Reading | None = None) -> TaskData:
    """Read a task that is never trained: only its test split, even if the source has training images."""
    reading = reading or Reading()
    raw = reading.raw(source, Columns())
    if not raw.test:
        raise DataError(f"task {name!r}: {source} has no test images")
    data = _task_data(name, source, replace(raw, train=raw.test.take(np.zeros(0, np.int64))), Choices())
    if reading.verify:
        raise_all([f"task {name!r}: {problem}" for problem in data.test.broken()])
    return data


def _task_data(name: str, source: str, raw: RawTask, chosen: Choices) -> TaskData:
    classes, raw, notes, problems = _named(raw, chosen.classes)
    prompts = tuple(chosen.templates) if chosen.templates is not None else raw.templates or DEFAULT_TEMPLATES
    problems += [f"class {name!r} is named twice" for name, count in Counter(classes).items() if count > 1]
    if len(classes) != len(raw.classes):
        problems.append(f"{len(classes)} class names are given, the data has {len(raw.classes)} classes")
    problems += [f"template {prompt!r} {problem}" for prompt in prompts if (problem := template_problem(prompt))]
    meant = raw.aliases if chosen.aliases is None else chosen.aliases
    problems += alias_problems(classes, meant)
    if not prompts:
        problems.append("the list of templates is empty")
    splits = [split for split in (raw.train, raw.test, raw.validation) if split is not None]
    for split in splits:
        wrong = np.flatnonzero((split.labels < 0) | (split.labels >= len(raw.classes)))
        problems += [f"{split[i].origin} has label {split.labels[i]} of {len(raw.classes)} classes" for i in wrong]
    raise_all([f"task {name!r} ({source}): {problem}" for problem in problems])
    assert splits, "a data set has at least one split"
    none = splits[0].take(np.zeros(0, np.int64))
    train, test = (raw.train or none).in_identity_order(), raw.test or none
    if chosen.few_shot is not None:
        train = train.take(_first_of_each_class(train.labels, chosen.few_shot))
    background = _background(chosen.background or raw.background)
    images = ImageSet(train, background=background)
    asked = raw.validation.in_identity_order() if raw.validation else None
    return TaskData(
        name,
        classes,
        prompts,
        images,
        ImageSet(test, background=background),
        _sha256(classes, prompts, background, train, asked),
        {name: tuple(others) for name, others in meant.items()},
        raw.layout,
        (*raw.notes, *notes, *said_of_size(images)),
        tuple(doubts(classes, images, test)),
        None if asked is None else ImageSet(asked, background=background),
    )


def _sha256(
    classes: Sequence[str], templates: Sequence[str], background: str | None, train: Rows, validation: Rows | None
) -> str:
    """Over the canonical JSON of all that decides what is trained. The training images, which may be millions, are
    written a few at a time; validation images, which decide where training stops, are one hash."""
    rest: dict[str, Any] = {"classes": classes, "templates": templates}
    if background:
        rest["background"] = background
    if validation is not None:
        rest["validation"] = hashlib.sha256(b",".join(_as_json(validation))).hexdigest()
    mark = b'"images":[]'
    before, after = canonical_json({**rest, "images": []}).split(mark)  # in a text its quotes would be escaped
    digest = hashlib.sha256(before + mark[:-1])
    for number, piece in enumerate(_as_json(train)):
        digest.update((b"," if number else b"") + piece)
    digest.update(mark[-1:] + after)
    return digest.hexdigest()


def _as_json(train: Rows) -> Iterator[bytes]:
    for first in range(0, len(train), _IMAGES_AT_ONCE):
        part = slice(first, first + _IMAGES_AT_ONCE)
        labels, hashes = train.labels[part].tolist(), train.hashes[part]
        images = [[label, sha256.tobytes().hex()] for label, sha256 in zip(labels, hashes, strict=True)]
        yield canonical_json(images)[1:-1]


def _named(raw: RawTask, given: Sequence[str] | None) -> tuple[tuple[str, ...], RawTask, list[str], list[str]]:
    """The class names, the task with its labels in their order, what to say of them, and what is wrong with them."""
    if given is None:
        problem = "the labels are numbers without names: list the names under `classes`, in task.json or here"
        return raw.classes, raw, [], [problem] if raw.unnamed else []
    names = tuple(given)
    if raw.by_name and names != raw.classes and sorted(names) == sorted(raw.classes):
        place = np.array([names.index(name) for name in raw.classes])
        train, test, validation = (
            None if samples is None else samples.labelled(place[samples.labels])
            for samples in (raw.train, raw.test, raw.validation)
        )
        return names, replace(raw, classes=names, train=train, test=test, validation=validation), [], []
    if not raw.by_name and not raw.unnamed and names != raw.classes and sorted(names) == sorted(raw.classes):
        return names, raw, [], ["`classes` lists the data's own names in another order: leave it out"]
    notes = []
    if len(names) == len(raw.classes) and raw.numbers:
        pairs = [f"{number} is {name}" for number, name in zip(raw.numbers, names, strict=True)]
        notes = ["folder " + ", ".join(pairs[:3] + (["…", pairs[-1]] if len(pairs) > 3 else []))]
    return names, raw, notes, []


def _background(colour: str | None) -> str | None:
    """As `#rrggbb`; None for white, which is what a task has that says nothing."""
    if colour is None:
        return None
    try:
        red, green, blue = parse_background(colour)
    except ConfigError as error:
        raise DataError(str(error)) from error
    return None if (red, green, blue) == (255, 255, 255) else f"#{red:02x}{green:02x}{blue:02x}"


def _first_of_each_class(labels: np.ndarray, count: int) -> np.ndarray:
    """Indices of the first images of each class, of labels that are sorted."""
    return np.flatnonzero(np.arange(len(labels)) - np.searchsorted(labels, labels) < count)
