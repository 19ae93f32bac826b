"""WebDataset shards: tar files in which an image and its label share a name, `0001.jpg` and `0001.cls`."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import PurePosixPath
from typing import Any

from fusion.answers.images import SUFFIXES
from fusion.errors import DataError
from training.raw_task import RawTask, read_task_json
from training.rows import LABEL_COLUMNS, Columns, Row, parts_of, pick, task_of_rows
from training.tree import Tree


def read_webdataset(tree: Tree, columns: Columns) -> RawTask:
    """All tar files of a tree. Raises `DataError`."""
    files = [key for key in tree.files if key.lower().endswith(".tar")]
    parts = {
        part: [row for key in keys for row in _rows(f"{tree.root}/{key}", tree.files[key](), columns)]
        for part, keys in parts_of(tree.root, files).items()
    }
    layout = f"{len(files)} WebDataset shards"
    return task_of_rows(tree.root, parts, read_task_json(tree), class_names=None, layout=layout, notes=tree.notes)


def _rows(path: str, data: bytes, columns: Columns) -> list[Row]:
    samples: dict[str, dict[str, bytes]] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            for member in archive:
                name = PurePosixPath(member.name)
                stem, _, ending = name.name.partition(".")
                content = archive.extractfile(member) if member.isfile() and stem else None
                if content is not None:
                    samples.setdefault(str(name.parent / stem), {})[f".{ending.lower()}"] = content.read()
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DataError(f"{path} can't be read as a tar file: {error}") from error
    rows = []
    for key, fields in samples.items():
        image = next((content for ending, content in fields.items() if ending in SUFFIXES), None)
        rows.append(Row(f"{path}: {key}", _label(f"{path}: {key}", fields, columns), image))
    if rows and all(isinstance(row.label, str) and row.label.isdigit() for row in rows):
        rows = [Row(row.origin, int(row.label), row.image) for row in rows]
    return rows


def _label(origin: str, fields: dict[str, bytes], columns: Columns) -> Any:
    if ".cls" in fields:
        return fields[".cls"].decode("utf-8", "replace").strip()
    if ".json" not in fields:
        return None
    try:
        record = json.loads(fields[".json"])
    except ValueError as error:
        raise DataError(f"{origin}.json is not JSON: {error}") from error
    if not isinstance(record, dict):
        raise DataError(f"{origin}.json has to be an object with a label")
    return record[pick(f"{origin}.json", "label", columns.label, list(record), (*LABEL_COLUMNS, "cls"))]
