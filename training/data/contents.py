"""What files of a data set hold: one row per file, with its images as a list. Made by reading a file once, whole.

A file is an image, a Parquet table or a tar file; the suffix says which. The rows are Arrow, because a data set may
have millions of images, and because they travel between processes and are kept in the store (`training.data.index`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fusion.errors import DataError, StoreError
from training.data.files import File
from training.data.images import problem_of

if TYPE_CHECKING:
    import pyarrow as pa

WHOLE_FILE = -1
"""The `group` of an image that is bytes of a file, and not a row of a Parquet row group."""


@dataclass(frozen=True)
class Columns:
    """Which columns of a table hold image and label; None: found by name."""

    image: str | None = None
    label: str | None = None


@dataclass(frozen=True)
class Unread:
    """A file to read, or a part of it.

    Attributes:
        key: its path in the tree.
        origin: what errors call it.
        groups: of a Parquet file: row groups [first, last) to read.
        size: about how much there is to read, bytes.
    """

    key: str
    origin: str
    file: File
    columns: Columns = Columns()
    groups: tuple[int, int] | None = None
    size: int = 0


@dataclass(frozen=True)
class Held:
    """One image that a file holds.

    Attributes:
        start: its first byte in the file; of a Parquet file its row.
        image: its encoded bytes; None where the row has none.
        label: as the file says: a number, a text, or None.
        group: its row group in a Parquet file.
        called: its name inside the file; '' where it has none.
        outside: the file beside the table that holds it, where a row names one.
    """

    start: int
    image: bytes | None
    label: Any = None
    group: int = WHOLE_FILE
    called: str = ""
    outside: str | None = None


def schema() -> pa.Schema:
    """Of a table of contents. `sha256` is null and `size` -1 where there is no image; `label` is JSON."""
    import pyarrow as pa

    image = [
        ("group", pa.int32()), ("start", pa.int64()), ("size", pa.int64()), ("sha256", pa.binary(32)),
        ("label", pa.string()), ("called", pa.string()), ("outside", pa.string()), ("problem", pa.string()),
    ]  # fmt: skip
    return pa.schema([
        ("path", pa.string()), ("stamp", pa.string()), ("class_names", pa.string()),
        ("images", pa.list_(pa.struct(image))),
    ])  # fmt: skip


def read_contents(unread: Sequence[Unread], *, verify: bool) -> pa.Table:
    """Read files, one row each. With `verify` every image is decoded, and `problem` says what is wrong with it.

    Memory: one image, or a few megabytes of a table. Raises `DataError` for a file that can't be read.
    """
    import pyarrow as pa

    rows = [_read(one, verify) for one in unread]
    return pa.Table.from_pylist(rows, schema=schema())


def merged(parts: pa.Table) -> pa.Table:
    """The same with one row per path, where files were read in parts. Parts of a file are adjacent and in order."""
    import pyarrow as pa

    paths = parts["path"].to_pylist()
    if len(set(paths)) == len(paths):
        return parts
    first = [number for number, path in enumerate(paths) if number == 0 or paths[number - 1] != path]
    images = parts["images"].combine_chunks()
    offsets = images.offsets.take(pa.array([*first, len(paths)], pa.int32()))
    joined = pa.ListArray.from_arrays(offsets, images.values, type=images.type)
    kept = parts.take(pa.array(first))
    return kept.set_column(kept.schema.get_field_index("images"), "images", joined)


def _read(one: Unread, verify: bool) -> dict[str, Any]:
    stamp = one.file.stamp  # as it was listed: what changes while it is read is read again next time
    suffix = one.key.rpartition(".")[2].lower()
    read = {"parquet": _read_table, "tar": _read_shard}.get(suffix, _read_image)
    try:
        class_names, images = read(one, verify)
    except (OSError, StoreError) as error:
        raise DataError(f"{one.origin} can't be read: {error}") from error
    names = json.dumps(class_names) if class_names else None
    return {"path": one.key, "stamp": stamp, "class_names": names, "images": images}


_Read = tuple[tuple[str, ...] | None, list[dict[str, Any]]]


def _read_image(one: Unread, verify: bool) -> _Read:
    return None, [_described(one, Held(0, one.file.read()), verify)]


def _read_table(one: Unread, verify: bool) -> _Read:
    from training.data.parquet import ParquetImages

    table = ParquetImages(one.file, one.origin, one.columns)
    return table.class_names, [_described(one, held, verify) for held in table.rows(one.groups)]


def _read_shard(one: Unread, verify: bool) -> _Read:
    from training.data.webdataset import Shard

    shard = Shard(one.file, one.origin, one.columns)
    images = {held.called: _described(one, held, verify) for held in shard.images()}
    rows = []
    for number, (name, label) in enumerate(shard.labels().items()):
        row = images.get(name) or _described(one, Held(-1 - number, None, called=name), verify)
        rows.append({**row, "label": None if label is None else json.dumps(label)})
    return None, rows


def _described(one: Unread, held: Held, verify: bool) -> dict[str, Any]:
    image, origin = held.image, name_of(one.origin, held.group, held.start, held.called)
    return {
        "group": held.group,
        "start": held.start,
        "size": -1 if image is None else len(image),
        "sha256": None if image is None else hashlib.sha256(image).digest(),
        "label": None if held.label is None else json.dumps(held.label),
        "called": held.called or None,
        "outside": held.outside,
        "problem": problem_of(image, origin) if verify and image is not None else None,
    }


def name_of(file: str, group: int, start: int, called: str | None) -> str:
    """What messages call an image: its file, with the row or the name inside it."""
    if group != WHOLE_FILE:
        return f"{file} row {start}"
    return f"{file}: {called}" if called else file
