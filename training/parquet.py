"""Parquet: as condu documents it, and as Hugging Face `datasets` writes it.

Images are encoded bytes, or a struct of `bytes` and `path`; labels are integers or strings. Class names come from
`task.json`, or from the `ClassLabel` in the schema's metadata. Any number of files, shards and row groups.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from fusion.errors import DataError
from training.raw_task import RawTask, read_task_json
from training.rows import IMAGE_COLUMNS, LABEL_COLUMNS, Columns, Row, parts_of, pick, task_of_rows
from training.tree import Tree

if TYPE_CHECKING:
    import pyarrow as pa

_ROWS_AT_ONCE = 256


def read_parquet(tree: Tree, columns: Columns) -> RawTask:
    """All Parquet files of a tree. Raises `DataError`."""
    files = [key for key in tree.files if key.lower().endswith(".parquet")]
    named: dict[tuple[str, ...] | None, str] = {}
    parts: dict[str, list[Row]] = {}
    for part, keys in parts_of(tree.root, files).items():
        parts[part] = []
        for key in keys:
            rows, class_names = _read(tree, key, columns)
            named.setdefault(class_names, key)
            parts[part] += rows
    if len(named) > 1:
        raise DataError(
            f"{tree.root}: {' and '.join(named.values())} name their classes differently: they belong to different data"
        )
    (class_names,) = named
    info = read_task_json(tree)
    if info.classes and class_names and info.classes != class_names and set(info.classes) == set(class_names):
        raise DataError(f"{tree.root}: task.json has the classes of the Parquet files in another order: drop one list")
    layout = "Parquet" if len(files) <= 2 else f"{len(files)} Parquet files"
    return task_of_rows(tree.root, parts, info, class_names=class_names, layout=layout, notes=tree.notes)


def _read(tree: Tree, key: str, columns: Columns) -> tuple[list[Row], tuple[str, ...] | None]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = f"{tree.root}/{key}"
    try:
        file = pq.ParquetFile(io.BytesIO(tree.files[key]()))
        schema = file.schema_arrow
        image = pick(path, "image", columns.image, schema.names, IMAGE_COLUMNS)
        label = pick(path, "label", columns.label, schema.names, LABEL_COLUMNS)
        _check_types(path, schema, image, label)
        batches = file.iter_batches(batch_size=_ROWS_AT_ONCE, columns=[image, label])
        folder = str(PurePosixPath(key).parent)
        rows = list(_rows(path, batches, image, label, tree, "" if folder == "." else f"{folder}/"))
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} can't be read as Parquet with columns 'image' and 'label': {error}") from error
    return rows, _class_names(schema, label)


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


def _rows(
    path: str, batches: Iterator[pa.RecordBatch], image: str, label: str, tree: Tree, folder: str
) -> Iterator[Row]:
    number = 0
    for batch in batches:
        pairs = zip(batch.column(image).to_pylist(), batch.column(label).to_pylist(), strict=True)
        for value, name in pairs:
            yield Row(f"{path} row {number}", name, _bytes_of(value, tree, folder))
            number += 1


def _bytes_of(value: Any, tree: Tree, folder: str) -> bytes | None:
    """The encoded image: inside the row, or in a file beside the table that the row names."""
    if not isinstance(value, dict):
        return value
    if value.get("bytes") is None and value.get("path"):
        read = tree.files.get(folder + str(value["path"]))
        return read() if read else None
    return value.get("bytes")


def _class_names(schema: pa.Schema, label: str) -> tuple[str, ...] | None:
    """Names of a `ClassLabel`, as `datasets` keeps them in the schema's metadata."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        found = features[label].get("names")
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
    return tuple(map(str, found)) if isinstance(found, list) and found else None
