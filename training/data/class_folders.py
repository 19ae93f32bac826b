"""Class folders: one folder per class, named after it, with or without folders for the splits around them.

What people keep is understood as they mean it (`Training/`, one folder around everything, files of a file manager), and
said; what could mean two things is refused with both.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence

import numpy as np

from fusion.answers.images import SUFFIXES
from fusion.errors import DataError
from training.data.images import Rows, raise_all
from training.data.raw_task import CUT_NOTE, RawTask, TaskJson, cut, read_task_json
from training.data.splits import Splits, choose, split_of
from training.data.survey import Survey
from training.data.tree import Tree, names, suffix_of

Folders = Mapping[str, Sequence[str]]
"""Class folder to the keys of its images."""


def read_class_folders(tree: Tree, survey: Survey) -> RawTask:
    """Parse a tree of class folders. Raises `DataError`."""
    tree, notes = enter(tree, survey)
    info = read_task_json(tree)
    images, others = _images_of(tree, survey)
    if others:
        notes.append(f"left out {len(others)} files that are no images: {names(others)}")
    top = sorted({folder for folder in tree.folders if "/" not in folder})
    splits = [folder for folder in top if split_of(folder)]
    with_folders = {folder for folder in top if _holds_folders(folder, images)}
    is_split = bool(splits) and all(folder in with_folders or not _holds(folder, images) for folder in splits)
    is_split = is_split and any(folder in with_folders for folder in splits)
    if not is_split and splits and splits == top and info.classes is None:
        raise DataError(
            f"{tree.root} has {', '.join(f'{folder}/' for folder in splits)} with images directly inside, and no class "
            "folders: each needs one folder per class, named after it, with its images"
        )
    if is_split:
        beside = [folder for folder in top if folder not in splits]
        if beside:
            notes.append(f"left out what lies beside the splits: {names(f'{folder}/' for folder in beside)}")
        inside: dict[str, Folders] = {folder: _classes_in(tree, f"{folder}/", images) for folder in splits}
        chosen = choose(tree.root, inside, what="{}/", validation=survey.validation)
        return _of_splits(tree, survey, info, chosen, [*notes, *chosen.notes])
    folders = _classes_in(tree, "", images)
    classes, positions, dropped = _class_names(tree.root, folders, None, info.classes)
    notes += dropped
    shown, hidden = cut(_samples(tree, survey, folders, positions))
    return _raw(info, classes, positions, shown, hidden, [*notes, CUT_NOTE])


def enter(tree: Tree, survey: Survey) -> tuple[Tree, list[str]]:
    """Go into one folder around everything, and into the next. Returns the tree there, and what to say of it."""
    entered = []
    while True:
        images, _ = _images_of(tree, survey)
        top = {key.split("/")[0] for key in images}
        if len(top) != 1 or "task.json" in tree.files:
            break
        (only,) = top
        if only in images or split_of(only) or not _holds_folders(only, images):
            break
        entered.append(only)
        tree = tree.inside(only)
    notes = list(tree.notes)
    if entered:
        notes.append(f"everything is in {'/'.join(entered)}/")
    return tree, notes


def _of_splits(tree: Tree, survey: Survey, info: TaskJson, chosen: Splits[Folders], notes: list[str]) -> RawTask:
    train, test = chosen.train, chosen.test
    first, second = (train, test) if train is not None else (test, None)
    assert first is not None, "choose() found a split"
    classes, positions, dropped = _class_names(tree.root, first, second, info.classes)
    return _raw(
        info,
        classes,
        positions,
        None if train is None else _samples(tree, survey, train, positions),
        None if test is None else _samples(tree, survey, test, positions),
        [*notes, *dropped],
        validation=None if chosen.validation is None else _samples(tree, survey, chosen.validation, positions),
    )


def _raw(
    info: TaskJson,
    classes: tuple[str, ...],
    positions: Mapping[str, int],
    train: Rows | None,
    test: Rows | None,
    notes: Sequence[str],
    *,
    validation: Rows | None = None,
) -> RawTask:
    folders = sorted(positions, key=positions.__getitem__)
    numbers = tuple(map(int, folders)) if all(re.fullmatch(r"\d+", folder) for folder in folders) else ()
    return RawTask(
        classes,
        info.templates,
        train,
        test,
        validation,
        info.aliases,
        info.background,
        layout="class folders",
        notes=tuple(notes),
        by_name=True,
        numbers=numbers if info.classes is None else (),
    )


def _images_of(tree: Tree, survey: Survey) -> tuple[list[str], list[str]]:
    """Files that are images by their suffix, or by their first bytes where they have none; and the others.

    Of the others, those at the root (`README.md`, `task.json`) are nobody's class and not worth a word.
    """
    images, others = [], []
    for key in tree.files:
        suffix = suffix_of(key)
        has_none = not re.fullmatch(r"\.[a-z][a-z0-9_]{0,9}", suffix)
        if suffix in SUFFIXES or (has_none and survey.is_image(tree, key)):
            images.append(key)
        elif "/" in key:
            others.append(key)
    return images, others


def _holds(folder: str, images: Sequence[str]) -> bool:
    return any(key.startswith(f"{folder}/") for key in images)


def _holds_folders(folder: str, images: Sequence[str]) -> bool:
    """Whether a folder holds images in folders, and none directly."""
    inside = [key.removeprefix(f"{folder}/") for key in images if key.startswith(f"{folder}/")]
    return bool(inside) and all("/" in key for key in inside)


def _classes_in(tree: Tree, prefix: str, images: Sequence[str]) -> dict[str, list[str]]:
    """Images of each class folder directly under `prefix`, empty folders too."""
    depth = prefix.count("/")
    found: dict[str, list[str]] = {
        folder.removeprefix(prefix): []
        for folder in sorted(tree.folders)
        if folder.startswith(prefix) and folder.count("/") == depth
    }
    loose = []
    for key in images:
        if key.startswith(prefix):
            name, separator, _ = key.removeprefix(prefix).partition("/")
            if separator:
                found[name].append(key)
            else:
                loose.append(key)
    if not any(found.values()):
        raise DataError(
            f"{tree.root}/{prefix} has no class folders: it needs one folder per class, named after it, with its images"
        )
    if loose:
        raise DataError(f"{tree.root}/{prefix} holds images beside the class folders: {names(loose)}: which class?")
    return found


def _class_names(
    root: str, folders: Folders, more: Folders | None, given: tuple[str, ...] | None
) -> tuple[tuple[str, ...], dict[str, int], list[str]]:
    """Classes in order, the label of each folder, and notes. A `_` reads as a space: `golden_retriever` is two words.

    `more`: the folders of the test split, where `folders` are those of the training split.
    """
    notes: list[str] = []
    _refuse_look_alikes(root, [*folders, *(more or {})])
    if extra := sorted(folder for folder, keys in (more or {}).items() if keys and folder not in folders):
        raise DataError(f"{root}: the test split has classes that train/ lacks: {', '.join(extra)}")
    if given is not None:
        return given, _positions_in(root, folders, given), notes
    full = [folder for folder, keys in folders.items() if keys or (more or {}).get(folder)]
    if empty := sorted(set(folders) - set(full)):
        notes.append(f"left out {len(empty)} empty class folders: {names(empty)}")
    ordered = sorted(full, key=_in_number_order if all(re.fullmatch(r"\d+", name) for name in full) else str)
    spoken = [folder.replace("_", " ") for folder in ordered]
    return tuple(spoken), {folder: index for index, folder in enumerate(ordered)}, notes


def _in_number_order(name: str) -> tuple[int, str]:
    return int(name), name


def _positions_in(root: str, folders: Folders, given: tuple[str, ...]) -> dict[str, int]:
    """The label of each folder among the classes of task.json."""
    position = {name: index for index, name in enumerate(given)}
    indices = {folder: position.get(folder, position.get(folder.replace("_", " "), -1)) for folder in folders}
    filled = {folder for folder, keys in folders.items() if keys}
    if not any(index >= 0 for index in indices.values()) and all(re.fullmatch(r"\d+", name) for name in filled):
        numbers = sorted(filled, key=_in_number_order)
        if len(numbers) == len(given):
            return {folder: index for index, folder in enumerate(numbers)}
    problems = [f"folder {folder} is not a class of task.json" for folder, index in indices.items() if index < 0]
    problems += [
        f"class {given[index]!r} of task.json has no folder"
        for index in sorted(set(position.values()) - set(indices.values()))
    ]
    raise_all([f"{root}: {problem}" for problem in problems])
    return indices


def _refuse_look_alikes(root: str, folders: Sequence[str]) -> None:
    """Two folders that read alike would be two classes with one name, or one class of which half is missing."""
    known: dict[str, str] = {}
    for folder in folders:
        other = known.setdefault(_folded(folder), folder)
        if other == folder:
            continue
        if other.replace("_", " ") == folder.replace("_", " "):
            raise DataError(
                f"{root}: class folders that read alike once '_' is a space: {folder.replace('_', ' ')}: rename one of "
                "each"
            )
        raise DataError(
            f"{root}: the class folders {other!a} and {folder!a} differ only in case, spaces or Unicode form: "
            "rename one if they are two classes, else put their images together"
        )


def _folded(name: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", name.replace("_", " ")).casefold().split())


def _samples(tree: Tree, survey: Survey, folders: Folders, positions: Mapping[str, int]) -> Rows:
    keys = [(key, positions[folder]) for folder, keys in folders.items() for key in keys if folder in positions]
    found = survey.look(tree, [key for key, _ in keys])
    return found.table.rows.labelled(np.array([label for _, label in keys], np.int64))
