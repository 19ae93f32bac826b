"""Parquet: as condu documents it, and as Hugging Face `datasets` writes it.

Images are encoded bytes, or a struct of `bytes` and `path`; labels are integers or strings. Class names come from
`task.json`, or from the `ClassLabel` in the schema's metadata. Any number of files, shards and row groups; what is in
memory is a few rows of one row group.
"""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from fusion.errors import DataError
from training.data.contents import Columns, Held
from training.data.files import File, FileStream
from training.data.raw_task import RawTask, read_task_json
from training.data.rows import IMAGE_COLUMNS, LABEL_COLUMNS, parts_of, pick, task_of_rows
from training.data.survey import Survey
from training.data.tree import Tree

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

_BATCH_BYTES = 16 << 20
_MOST_ROWS_AT_ONCE = 256
_LOCAL_READ_BYTES = 1 << 20
_S3_READ_BYTES = 8 << 20


def read_parquet(tree: Tree, survey: Survey) -> RawTask:
    """All Parquet files of a tree. Raises `DataError`."""
    keys = [key for key in tree.files if key.lower().endswith(".parquet")]
    parts = parts_of(tree.root, keys)
    found = survey.look(tree, [key for part in parts.values() for key in part])
    if len(found.named) > 1:
        raise DataError(
            f"{tree.root}: {' and '.join(found.named.values())} name their classes differently: they belong to "
            "different data"
        )
    (class_names,) = found.named
    info = read_task_json(tree)
    if info.classes and class_names and info.classes != class_names and set(info.classes) == set(class_names):
        raise DataError(f"{tree.root}: task.json has the classes of the Parquet files in another order: drop one list")
    layout = "Parquet" if len(keys) <= 2 else f"{len(keys)} Parquet files"
    tables = survey.with_outside(tree, found).split(parts)
    return task_of_rows(
        tree.root,
        tables,
        info,
        class_names=class_names,
        layout=layout,
        notes=tree.notes,
        validation=survey.validation,
    )


class ParquetImages:
    """One Parquet file of images. Safe to share between threads, which take turns.

    Args:
        file: the file. Its footer is read at once.
        origin: what errors call it.
        columns: which hold image and label.
    Raises:
        DataError: not Parquet, or without such columns.
    """

    def __init__(self, file: File, origin: str, columns: Columns) -> None:
        self._origin = origin
        self._folder = str(PurePosixPath(origin).parent)
        self._lock = threading.Lock()
        with self._explained():
            self._file = _opened(file)
            schema = self._file.schema_arrow
            self._image = pick(origin, "image", columns.image, schema.names, IMAGE_COLUMNS)
            self._label = pick(origin, "label", columns.label, schema.names, LABEL_COLUMNS)
            _check_types(origin, schema, self._image, self._label)
            groups = [self._file.metadata.row_group(number) for number in range(self._file.metadata.num_row_groups)]
        self.class_names = _class_names(schema, self._label)
        self.group_bytes = tuple(max(group.total_byte_size, 1) for group in groups)
        """Uncompressed bytes of every row group."""
        self._num_rows = tuple(group.num_rows for group in groups)
        self._first_row = np.concatenate([[0], np.cumsum(self._num_rows)]).astype(np.int64)
        self._cursor: tuple[int, int, Iterator[tuple[int, pa.RecordBatch]]] | None = None
        self._left: tuple[int, pa.RecordBatch] | None = None

    def rows(self, groups: tuple[int, int] | None = None) -> Iterator[Held]:
        """The rows of row groups [first, last), or all."""
        first, last = groups or (0, len(self._num_rows))
        for group in range(first, last):
            for start, batch in self._batches(group, [self._image, self._label]):
                labels = batch.column(self._label).to_pylist()
                for number, (value, label) in enumerate(zip(batch.column(self._image), labels, strict=True)):
                    image, outside = _image_of(value.as_py())
                    yield Held(start + number, image, label, group, outside=outside)

    def read(self, group: int, rows: np.ndarray) -> list[bytes]:
        """The encoded images of some rows of a row group, by their numbers in the file, ascending.

        A large row group that is read in pieces, one after the other, is passed once. Raises `DataError` for rows that
        are not there any more.
        """
        wanted = [int(row) for row in rows]
        first, stop = self._first_row[group : group + 2] if group < len(self._num_rows) else (0, 0)
        if not first <= wanted[0] <= wanted[-1] < stop:
            raise self._changed(wanted[-1])
        found: list[bytes] = []
        with self._lock:
            batches = self._from(group, wanted[0])
            while len(found) < len(wanted):
                start, batch = next(batches)
                column, stop = batch.column(self._image), start + len(batch)
                while len(found) < len(wanted) and wanted[len(found)] < stop:
                    image, _ = _image_of(column[wanted[len(found)] - start].as_py())
                    if image is None:
                        raise self._changed(wanted[len(found)])
                    found.append(image)
                self._left = (start, batch) if wanted[-1] + 1 < stop else None
                self._cursor = (group, wanted[-1] + 1, batches)
            if wanted[-1] + 1 >= self._first_row[group + 1]:
                self._cursor = self._left = None
        return found

    def _changed(self, row: int) -> DataError:
        return DataError(f"{self._origin} row {row} is not there any more: the file has changed, run again")

    def _from(self, group: int, row: int) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Batches of a row group that are still to come, at or before a row."""
        if self._cursor and self._cursor[0] == group and self._cursor[1] <= row:
            left, batches = self._left, self._cursor[2]
            return _chained(left, batches) if left else batches
        return self._batches(group, [self._image])

    def _batches(self, group: int, columns: list[str]) -> Iterator[tuple[int, pa.RecordBatch]]:
        """A row group in small batches, each with the number of its first row in the file."""
        num_rows = max(self._num_rows[group], 1)
        at_once = max(1, min(_MOST_ROWS_AT_ONCE, _BATCH_BYTES * num_rows // self.group_bytes[group]))
        start = int(self._first_row[group])
        with self._explained():
            for batch in self._file.iter_batches(at_once, row_groups=[group], columns=columns, use_threads=False):
                yield start, batch
                start += len(batch)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        import pyarrow as pa

        try:
            yield
        except (pa.ArrowException, OSError) as error:
            raise DataError(
                f"{self._origin} can't be read as Parquet with columns 'image' and 'label': {error}"
            ) from error


def _opened(file: File) -> pq.ParquetFile:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if file.path is not None:
        return pq.ParquetFile(file.path, buffer_size=_LOCAL_READ_BYTES)
    stream = io.BufferedReader(FileStream(file), _S3_READ_BYTES)
    return pq.ParquetFile(pa.PythonFile(stream, mode="r"), buffer_size=_S3_READ_BYTES)


def _chained(
    first: tuple[int, pa.RecordBatch], rest: Iterator[tuple[int, pa.RecordBatch]]
) -> Iterator[tuple[int, pa.RecordBatch]]:
    yield first
    yield from rest


def _check_types(path: str, schema: pa.Schema, image: str, label: str) -> None:
    import pyarrow.types as types

    kind, numbers = schema.field(image).type, schema.field(label).type
    values = kind.field("bytes").type if types.is_struct(kind) and kind.get_field_index("bytes") >= 0 else kind
    if types.is_dictionary(numbers):
        numbers = numbers.value_type
    texts = types.is_string(numbers) or types.is_large_string(numbers)
    if not (types.is_binary(values) or types.is_large_binary(values)) or not (types.is_integer(numbers) or texts):
        raise DataError(
            f"{path}: {image!r} has to hold encoded images (binary, or a struct of bytes and path) for 'image', and "
            f"{label!r} integers or strings for 'label'; they are {kind} and {numbers}"
        )


def _image_of(value: Any) -> tuple[bytes | None, str | None]:
    """The encoded image of a row, or the file beside the table that the row names instead."""
    if not isinstance(value, dict):
        return value, None
    if value.get("bytes") is None and value.get("path"):
        return None, str(value["path"])
    return value.get("bytes"), None


def _class_names(schema: pa.Schema, label: str) -> tuple[str, ...] | None:
    """Names of a `ClassLabel`, as `datasets` keeps them in the schema's metadata."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        found = features[label].get("names")
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
    return tuple(map(str, found)) if isinstance(found, list) and found else None
