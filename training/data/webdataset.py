"""WebDataset shards: tar files in which an image and its label share a name, `0001.jpg` and `0001.cls`.

A shard is read once from its beginning to its end, to find its members; later each image is a range of its bytes.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from fusion.answers.images import SUFFIXES
from fusion.errors import DataError
from training.data.contents import Columns, Held
from training.data.files import File, FileStream
from training.data.raw_task import RawTask, read_task_json
from training.data.rows import LABEL_COLUMNS, parts_of, pick, task_of_rows
from training.data.survey import Found, Survey
from training.data.tree import Tree

_READ_BYTES = 8 << 20


def read_webdataset(tree: Tree, survey: Survey) -> RawTask:
    """All tar files of a tree. Raises `DataError`."""
    files = [key for key in tree.files if key.lower().endswith(".tar")]
    parts = parts_of(tree.root, files)
    found = survey.look(tree, [key for keys in parts.values() for key in keys])
    tables = found.relabelled(_numbered(found)).split(parts)
    layout = f"{len(files)} WebDataset shards"
    return task_of_rows(
        tree.root,
        tables,
        read_task_json(tree),
        class_names=None,
        layout=layout,
        notes=tree.notes,
        validation=survey.validation,
    )


def _numbered(found: Found) -> list[Any]:
    """The labels: numbers where all of a shard's are, since `.cls` has no types."""
    labels: list[Any] = []
    first = 0
    for count in found.counts.tolist():
        own = found.table.labels[first : first + count]
        digits = all(isinstance(label, str) and label.isdigit() for label in own)
        labels += map(int, own) if digits else own
        first += count
    return labels


class Shard:
    """One tar file, read from its beginning to its end.

    Args:
        file: the file.
        path: what errors call it.
        columns: which field of a `.json` holds the label.
    """

    def __init__(self, file: File, path: str, columns: Columns) -> None:
        self._file = file
        self._path = path
        self._columns = columns
        self._texts: dict[str, dict[str, bytes]] = {}

    def images(self) -> Iterator[Held]:
        """Images as they come, without labels, which may be anywhere in the file. Memory: one image, and all labels.

        Raises `DataError` if it is not a plain tar file.
        """
        seen = set()
        try:
            stream = io.BufferedReader(FileStream(self._file), _READ_BYTES)
            with tarfile.open(fileobj=stream, mode="r:") as archive:
                for member in archive:
                    name = PurePosixPath(member.name)
                    stem, _, ending = name.name.partition(".")
                    content = archive.extractfile(member) if member.isfile() and stem else None
                    if content is None:
                        continue
                    key, suffix = str(name.parent / stem), f".{ending.lower()}"
                    texts = self._texts.setdefault(key, {})
                    if suffix in (".cls", ".json"):
                        texts[suffix] = content.read()
                    elif suffix in SUFFIXES and key not in seen:
                        seen.add(key)
                        yield Held(member.offset_data, content.read(), called=key)
        except (tarfile.TarError, EOFError) as error:
            raise DataError(f"{self._path} can't be read as a tar file: {error}") from error

    def labels(self) -> dict[str, Any]:
        """Name to label, in the order of the names' first members, once the images have passed. Raises `DataError`."""
        return {key: _label(f"{self._path}: {key}", texts, self._columns) for key, texts in self._texts.items()}


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
