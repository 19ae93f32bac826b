"""What a source says about a task before the caller's own choices, and what was understood on the way."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fusion.errors import DataError, StoreError
from training.data.images import Rows
from training.data.tree import Tree

TEST_SHARE = 0.2
"""Fraction of the images that goes into the test split of a data set that has none."""


@dataclass(frozen=True)
class RawTask:
    """A task as its source has it.

    Attributes:
        classes, templates, aliases, background: as the source says; templates and background None where it does not.
        train, test: None: the split does not exist.
        validation: a validation split beside a test split, where one is wanted.
        layout: how the source was read, in a few words, such as `class folders`.
        notes: what was understood or left out, a sentence each.
        by_name: whether labels come from names (of folders, of strings), which `classes` may put in another order;
            False: they are numbers, and `classes` says what they mean.
        numbers: the number that each class is called by in the source, where all of them are numbers.
        unnamed: labels are numbers that nothing in the source names: `classes` has to.
    """

    classes: tuple[str, ...]
    templates: tuple[str, ...] | None
    train: Rows | None
    test: Rows | None
    validation: Rows | None = None
    aliases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    background: str | None = None
    layout: str = ""
    notes: tuple[str, ...] = ()
    by_name: bool = False
    numbers: tuple[int, ...] = ()
    unnamed: bool = False


@dataclass(frozen=True)
class TaskJson:
    """The optional `task.json` beside a task's images."""

    classes: tuple[str, ...] | None = None
    templates: tuple[str, ...] | None = None
    aliases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    background: str | None = None


def cut(samples: Rows) -> tuple[Rows, Rows]:
    """Training and test split of a data set that has none.

    Decided by each image's content alone, so that adding images moves no others.
    """
    hidden = samples.share() < TEST_SHARE
    return samples.take(~hidden), samples.take(hidden)


CUT_NOTE = "no test split: a fifth of the images is held back for testing, chosen by content"


def read_task_json(tree: Tree) -> TaskJson:
    """`task.json` at the root of a tree; empty if there is none. Raises `DataError`."""
    if "task.json" not in tree.files:
        return TaskJson()
    path = f"{tree.root}/task.json"
    try:
        info = json.loads(tree.files["task.json"].read())
    except (OSError, StoreError, ValueError) as error:
        raise DataError(f"{path} is not JSON: {error}") from error
    if not isinstance(info, dict):
        raise DataError(f"{path} has to be an object with 'classes' and 'templates'")
    found: dict[str, Any] = {}
    for key in ("classes", "templates"):
        value = info.get(key)
        if value is None:
            continue
        if not _is_texts(value):
            raise DataError(f"{path}: {key!r} has to be a list of non-empty strings")
        found[key] = tuple(value)
    if (aliases := info.get("aliases")) is not None:
        if not isinstance(aliases, dict) or not all(_is_texts(others) for others in aliases.values()):
            raise DataError(f'{path}: "aliases" has to be an object of lists, such as {{"0": ["zero", "nought"]}}')
        found["aliases"] = {name: tuple(others) for name, others in aliases.items()}
    if (background := info.get("background")) is not None:
        if not isinstance(background, str):
            raise DataError(f'{path}: \'background\' has to be a colour, such as "white" or "#102030"')
        found["background"] = background
    return TaskJson(**found)


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, str) and item for item in value)
