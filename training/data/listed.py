"""Images that a table of paths and labels lists: CSV, TSV or JSON lines, as `metadata.csv` beside the images."""

from __future__ import annotations

import csv
import io
import json
from pathlib import PurePosixPath
from typing import Any

from fusion.errors import DataError, StoreError
from training.data.contents import Columns
from training.data.files import File
from training.data.raw_task import RawTask, read_task_json
from training.data.rows import LABEL_COLUMNS, WHOLE, parts_of, pick, task_of_rows
from training.data.splits import split_of
from training.data.survey import Survey
from training.data.tree import Tree, names, suffix_of

PATH_COLUMNS = ("file_name", "filename", "path", "file", "image", "image_path", "filepath")
_SPLIT_COLUMN = "split"
_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson")
_STEMS = ("metadata", "labels", "annotations", "index")


def tables_in(tree: Tree, columns: Columns) -> list[str]:
    """The tables of a tree that list its images: by their names and places, and because they have a path and a label.

    Other tables lie beside class folders that have nothing to do with them.
    """
    found = []
    for key in tree.files:
        if suffix_of(key) in _SUFFIXES and key.count("/") < 2:
            stem = PurePosixPath(key).stem.casefold()
            if (stem in _STEMS or split_of(stem)) and _lists_images(f"{tree.root}/{key}", key, tree, columns):
                found.append(key)
    return sorted(found)


def read_listed(tree: Tree, keys: list[str], survey: Survey) -> RawTask:
    """The images that the tables list. Raises `DataError`."""
    parts: dict[str, list[tuple[str, Any]]] = {}
    missing: list[str] = []
    for part, tables in parts_of(tree.root, keys).items():
        for key in tables:
            for split, image, label in _rows(tree, key, survey.columns, missing):
                parts.setdefault(split or part, []).append((image, label))
    if missing:
        raise DataError(f"{tree.root}: {len(missing)} listed files are not there: {names(missing)}")
    if WHOLE in parts and len(parts) > 1:
        raise DataError(f"{tree.root}: {len(parts[WHOLE])} rows of {names(keys)} say no split, others do")
    images = {part: [image for image, _ in rows] for part, rows in parts.items()}
    found = survey.look(tree, [image for part in images.values() for image in part])
    found = found.relabelled([label for rows in parts.values() for _, label in rows])
    note = f"labels are those of {names(keys)}"
    return task_of_rows(
        tree.root,
        found.split(images),
        read_task_json(tree),
        class_names=None,
        layout="a list of files",
        notes=[*tree.notes, note],
        validation=survey.validation,
    )


def _rows(tree: Tree, key: str, columns: Columns, missing: list[str]) -> list[tuple[str, str, Any]]:
    """Split ('' where the row says none), image file and label of every row."""
    path = f"{tree.root}/{key}"
    records = _records(path, key, tree.files[key])
    present = list(dict.fromkeys(name for record in records for name in record))
    if not records:
        raise DataError(f"{path} lists no images")
    file = pick(path, "image", columns.image, present, PATH_COLUMNS)
    label = pick(path, "label", columns.label, present, LABEL_COLUMNS)
    folder = PurePosixPath(key).parent
    found = []
    for number, record in enumerate(records):
        name = str(record.get(file) or "").replace("\\", "/").removeprefix("./")
        image = next((place for place in (str(folder / name), name) if place in tree.files), None)
        if image is None:
            missing.append(name or f"row {number}")
            continue
        split = str(record.get(_SPLIT_COLUMN) or "")
        found.append((split if split_of(split) else "", image, record.get(label)))
    texts = [text for _, _, text in found]
    if all(isinstance(text, str) and text.strip().isdigit() for text in texts):  # CSV has no types
        found = [(split, image, int(str(text))) for split, image, text in found]
    return found


def _lists_images(path: str, key: str, tree: Tree, columns: Columns) -> bool:
    present = {name.casefold() for record in _records(path, key, tree.files[key])[:1] for name in record if name}
    wanted = ((columns.image, PATH_COLUMNS), (columns.label, LABEL_COLUMNS))
    return all(given is not None or present & set(known) for given, known in wanted)


def _records(path: str, key: str, file: File) -> list[dict[str, Any]]:
    try:
        text = file.read().decode("utf-8-sig")
        if key.lower().endswith((".csv", ".tsv")):
            delimiter = "\t" if key.lower().endswith(".tsv") else ","
            return list(csv.DictReader(io.StringIO(text), delimiter=delimiter, strict=True))
        return [json.loads(line) for line in text.splitlines() if line.strip()]
    except (OSError, StoreError, UnicodeDecodeError, csv.Error, ValueError) as error:
        raise DataError(f"{path} can't be read: {error}") from error
