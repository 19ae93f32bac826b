"""Tables of images: rows with a label, from Parquet, from a list of files, or from an archive, as one task."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from fusion.errors import DataError
from training.data.images import Rows, raise_all
from training.data.raw_task import CUT_NOTE, RawTask, TaskJson, cut
from training.data.splits import choose, split_of
from training.data.tree import names

if TYPE_CHECKING:
    from training.data.survey import Table

IMAGE_COLUMNS = ("image", "img", "pixel_values", "picture", "jpg", "png")
LABEL_COLUMNS = ("label", "labels", "class", "category", "target", "fine_label", "coarse_label")
WHOLE = ""
"""Name of the only part of a data set that has no splits."""


def pick(path: str, kind: str, given: str | None, present: Sequence[str], known: Sequence[str]) -> str:
    """The column of a kind (`image` or `label`). Raises `DataError` if none would do, or more than one."""
    if given is not None:
        if given not in present:
            raise DataError(f"{path} has no column {given!r} ({kind}_column); it has {', '.join(present)}")
        return given
    lower = {name.casefold(): name for name in present}
    found = [lower[name] for name in known if name in lower]
    if not found:
        raise DataError(
            f"{path} has no column that holds the {kind} ('{kind}' or {', '.join(known[1:])}); it has "
            f"{', '.join(present)}: name it with {kind}_column"
        )
    if len(found) > 1:
        raise DataError(f"{path} has several columns for the {kind}: {', '.join(found)}: choose with {kind}_column")
    return found[0]


def parts_of(root: str, keys: Sequence[str]) -> dict[str, list[str]]:
    """Files by the split that their names say: `data/train-00000-of-00003.parquet`, `train/0000.parquet`, `test.tar`.

    One part `WHOLE` if no name says one. Raises `DataError` if only some do, if shards are missing, or if the files lie
    in several folders, which are several data sets.
    """
    parts: dict[str, list[str]] = {}
    homes: dict[str, str] = {}
    for key in sorted(keys):
        path = PurePosixPath(key)
        words = [re.split(r"[-_.]", path.name)[0], *reversed(path.parts[:-1])]
        split = next((word for word in words if split_of(word)), WHOLE)
        parts.setdefault(split, []).append(key)
        homes.setdefault("/".join(part for part in path.parts[:-1] if part not in (split, "data")), key)
    if len(homes) > 1:
        raise DataError(
            f"{root} holds several data sets, in {names(f'{home}/' if home else 'its root' for home in homes)}: name "
            "the folder of one"
        )
    if WHOLE in parts and len(parts) > 1:
        raise DataError(f"{root}: {names(parts[WHOLE])} say no split by their names, others do: rename or remove them")
    for split, files in parts.items():
        _check_shards(root, split, files)
    return parts


def _check_shards(root: str, split: str, files: Sequence[str]) -> None:
    numbered = [found for key in files if (found := re.search(r"-(\d{5})-of-(\d{5})\.", key))]
    if numbered:
        wanted = max(int(found[2]) for found in numbered)
        missing = sorted(set(range(wanted)) - {int(found[1]) for found in numbered})
        if missing:
            raise DataError(f"{root}: of {wanted} shards of {split or 'the data'}, {missing} are missing")


def task_of_rows(
    root: str,
    parts: Mapping[str, Table],
    info: TaskJson,
    *,
    class_names: tuple[str, ...] | None,
    layout: str,
    notes: Sequence[str] = (),
    validation: bool = False,
) -> RawTask:
    """One task from its tables.

    Args:
        parts: tables by the split's name, or under `WHOLE`.
        info: `task.json`.
        class_names: names of numbered labels, as the tables say.
        validation: whether a validation split beside a test split is wanted.
    Raises:
        DataError: rows without image or with a label that is no class, all of them at once.
    """
    different = {(type(label), label): label for table in parts.values() for label in table.labels if _is_scalar(label)}
    everything = list(different.values())
    texts = any(isinstance(label, str) for label in everything)
    classes = info.classes or class_names
    unnamed = False
    if classes is None and texts:
        classes = tuple(sorted({label for label in everything if isinstance(label, str) and label.strip()}))
    elif classes is None:
        numbers = [label for label in everything if isinstance(label, int) and label >= 0]
        classes, unnamed = tuple(map(str, range(max(numbers, default=-1) + 1))), True
    label_of = _labeller(classes, texts=texts)
    problems: list[str] = []
    samples = {name: _labelled(table, label_of, problems) for name, table in parts.items()}
    raise_all(problems)
    said = list(notes)
    train: Rows | None
    test: Rows | None
    asked: Rows | None = None
    if set(samples) == {WHOLE}:
        train, test = cut(samples[WHOLE])
        said.append(CUT_NOTE)
    else:
        chosen = choose(root, samples, what="{}", validation=validation)
        train, test, asked = chosen.train, chosen.test, chosen.validation
        said += chosen.notes
    return RawTask(
        classes, info.templates, train, test, asked, info.aliases, info.background,
        layout=layout, notes=tuple(said), by_name=texts, unnamed=unnamed,
    )  # fmt: skip


def _labeller(classes: tuple[str, ...], *, texts: bool) -> Callable[[Any], int | str]:
    """From a row's label to its index, or to what is wrong with it."""
    position = {name: index for index, name in enumerate(classes)}

    def label_of(value: Any) -> int | str:
        if texts:
            index = position.get(value) if isinstance(value, str) else None
            return f"has label {value!r}, which is no class" if index is None else index
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < len(classes):
            return f"has label {value}; the labels of the classes are 0 to {len(classes) - 1}"
        return value

    return label_of


def _is_scalar(label: Any) -> bool:
    return isinstance(label, str | int | float | bool)


def _labelled(table: Table, label_of: Callable[[Any], int | str], problems: list[str]) -> Rows:
    """The images with their labels. What is wrong with a row is added to `problems`."""
    rows = table.rows
    known: dict[tuple[type, Any], int | str] = {}
    labels = np.full(len(rows), -1, np.int64)
    for number, value in enumerate(table.labels):
        scalar = _is_scalar(value)
        label = known.get((type(value), value)) if scalar else None
        if label is None:
            label = label_of(value)
            if scalar:
                known[type(value), value] = label
        if isinstance(label, str):
            problems.append(f"{rows.reader.origin(rows.places[number])} {label}")
        elif rows.places["size"][number] < 0:
            problems.append(f"{rows.reader.origin(rows.places[number])} has no image")
        else:
            labels[number] = label
    return rows.labelled(labels)
