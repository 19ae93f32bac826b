"""A task's data: named classes, prompt templates, and labelled images in two splits, from any kind of source.

The identity of a data set does not depend on where it is stored: `TaskData.sha256` is over contents, training images
are sorted by their hashes, and a missing test split is cut by content hash. So the same images in a folder, in Parquet
or in a bucket give the same expert.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fusion.answers.label_matching import alias_problems
from fusion.answers.prompts import DEFAULT_TEMPLATES
from fusion.errors import DataError
from fusion.store import S3Options
from fusion.store.blobs import canonical_json
from training.images import ImageSet, Sample, raise_all
from training.sources import RawTask, read_raw, read_tree
from training.zoo import PREFIX, read_torchvision


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
    """

    name: str
    classes: tuple[str, ...]
    templates: tuple[str, ...]
    train: ImageSet
    test: ImageSet
    sha256: str
    aliases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def load_task_data(
    name: str,
    source: str,
    *,
    classes: Sequence[str] | None = None,
    templates: Sequence[str] | None = None,
    aliases: Mapping[str, Sequence[str]] | None = None,
    few_shot: int | None = None,
    verify: bool = True,
    options: S3Options | None = None,
) -> TaskData:
    """Read a task's data.

    Args:
        name: the task's name.
        source: `torchvision:NAME`, or a folder (path, `file://` or `s3://bucket/prefix/`) that contains `train/` and
            `test/` with class folders, or only class folders (split 80/20 by content hash), or `train.parquet`,
            `test.parquet` and `task.json`.
        classes: names in place of the source's, in the order of its labels (of its sorted folders).
        templates: in place of the source's; if neither has any, `a photo of a {}.`.
        aliases: class to other texts that mean it, in place of the source's.
        few_shot: keep only this many training images per class, the first in the order of their hashes.
        verify: decode every image once; otherwise a broken one is found only when it is used.
        options: how to reach S3.
    Raises:
        DataError: names the folder, class, file or row, and all problems of one kind at once.
    """
    raw = _read(source, options)
    if raw.train is None:
        raise DataError(
            f"task {name!r}: {source} has a test split only: a task to train needs train/ (or train.parquet)"
        )
    data = _task_data(name, source, raw, classes, templates, aliases, few_shot)
    counts = Counter(data.train.labels.tolist())
    if empty := [data.classes[label] for label in range(len(data.classes)) if not counts[label]]:
        raise DataError(
            f"task {name!r}: no training images for {', '.join(map(repr, empty))} in {source}: add some, or remove the "
            "class" + ("" if few_shot is None or few_shot > 0 else " (few_shot is 0)")
        )
    if verify:
        raise_all(data.train.broken() + data.test.broken())
    return data


def load_test_data(name: str, source: str, *, verify: bool = True, options: S3Options | None = None) -> TaskData:
    """Read a task that is never trained: only its test split, even if the source has training images."""
    raw = _read(source, options)
    if not raw.test:
        raise DataError(f"task {name!r}: {source} has no test images")
    data = _task_data(name, source, RawTask(raw.classes, raw.templates, [], raw.test), None, None, None, None)
    if verify:
        raise_all(data.test.broken())
    return data


def _read(source: str, options: S3Options | None) -> RawTask:
    return read_torchvision(source) if source.startswith(PREFIX) else read_raw(read_tree(source, options))


def _task_data(
    name: str,
    source: str,
    raw: RawTask,
    classes: Sequence[str] | None,
    templates: Sequence[str] | None,
    aliases: Mapping[str, Sequence[str]] | None,
    few_shot: int | None,
) -> TaskData:
    names = tuple(classes) if classes is not None else raw.classes
    prompts = tuple(templates) if templates is not None else raw.templates or DEFAULT_TEMPLATES
    problems = [f"class {name!r} is named twice" for name, count in Counter(names).items() if count > 1]
    if len(names) != len(raw.classes):
        problems.append(f"{len(names)} class names are given, the data has {len(raw.classes)} classes")
    problems += [f"template {prompt!r} {problem}" for prompt in prompts if (problem := _template_problem(prompt))]
    meant = raw.aliases if aliases is None else aliases
    problems += alias_problems(names, meant)
    if not prompts:
        problems.append("the list of templates is empty")
    samples = [*(raw.train or []), *(raw.test or [])]
    wrong = [sample for sample in samples if not 0 <= sample.label < len(raw.classes)]
    problems += [f"{sample.origin} has label {sample.label} of {len(raw.classes)} classes" for sample in wrong]
    raise_all([f"task {name!r} ({source}): {problem}" for problem in problems])
    train = sorted(raw.train or [], key=lambda sample: (sample.label, sample.sha256))
    if few_shot is not None:
        train = _first_of_each_class(train, few_shot)
    identity = {
        "classes": names,
        "templates": prompts,
        "images": [[sample.label, sample.sha256] for sample in train],
    }
    sha256 = hashlib.sha256(canonical_json(identity)).hexdigest()
    also = {name: tuple(others) for name, others in meant.items()}
    return TaskData(name, names, prompts, ImageSet(train), ImageSet(raw.test or []), sha256, also)


def _first_of_each_class(train: Sequence[Sample], count: int) -> list[Sample]:
    seen: Counter[int] = Counter()
    kept = []
    for sample in train:
        if seen[sample.label] < count:
            seen[sample.label] += 1
            kept.append(sample)
    return kept


def _template_problem(template: str) -> str | None:
    try:
        said = template.format("x")
    except (IndexError, KeyError, ValueError) as error:
        return f"can't be filled in ({error}): it takes one {{}} and no other braces"
    return None if "{}" in template and said != template else "has no {} for the class"
