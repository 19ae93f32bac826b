"""Reads request logs: the newest images first, and as many as fit.

Files may vanish while they are read, because gc deletes them. One that can't be read costs its rows, and is named.

Letters: N images, D dimensions of the embedding.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

import numpy as np

from fusion.errors import BlobNotFoundError
from fusion.store import Store
from fusion.versions.log_files import files_since

if TYPE_CHECKING:
    import pyarrow as pa

MOST_IMAGES = 50_000
_COLUMNS = ("time", "label_space", "named", "matched", "features")


@dataclass(frozen=True)
class LoggedImages:
    """What was asked, as far as it tells where images come from.

    Attributes:
        features: of the base, float32 [N, D].
        named: the task that was named, if one was.
        among: the tasks that the image was asked of; None: any.
        oldest: when the oldest of them was answered; None without any.
        left_out: whether there are older ones.
        unreadable: what is wrong with each file that could not be read.
    """

    features: np.ndarray
    named: Sequence[str | None]
    among: Sequence[Sequence[str] | None]
    oldest: datetime | None
    left_out: bool
    unreadable: Sequence[str]


def read_log(store: Store, since: datetime, *, dimensions: int, most: int = MOST_IMAGES) -> LoggedImages:
    """The images that were logged since then, at most so many. Raises the store's errors."""
    tables: list[pa.Table] = []
    unreadable: list[str] = []
    num_images, left_out = 0, False
    for info in files_since(store, since):
        if left_out := num_images >= most:
            break
        try:
            table = _read(store.get(info.key), dimensions)
        except BlobNotFoundError:
            continue
        except (OSError, ValueError) as error:  # pyarrow's own are subclasses of these
            unreadable.append(f"{store.url}/{info.key} can't be read: {error}")
            continue
        tables.append(_since(table, since))
        num_images += len(tables[-1])
    named: list[str | None] = [name for table in tables for name in table["named"].to_pylist()]
    spaces = [space for table in tables for space in table["label_space"].to_pylist()]
    matched = [tasks for table in tables for tasks in table["matched"].to_pylist()]
    times = [time for table in tables for time in table["time"].to_pylist()]
    return LoggedImages(
        features=np.concatenate([_features(table, dimensions) for table in tables] or [np.empty((0, dimensions))]),
        named=named,
        among=[_among(*one) for one in zip(spaces, named, matched, strict=True)],
        oldest=min(times, default=None),
        left_out=left_out,
        unreadable=unreadable,
    )


def _read(body: bytes, dimensions: int) -> pa.Table:
    """Raises `ValueError` for a file that is no log of this base."""
    import pyarrow.parquet as pq

    file = pq.ParquetFile(io.BytesIO(body))
    if missing := [name for name in _COLUMNS if name not in file.schema_arrow.names]:
        raise ValueError(f"it has no column {missing[0]!r}")
    table = file.read(columns=list(_COLUMNS))
    size = getattr(table.schema.field("features").type, "list_size", None)
    if size != dimensions:
        raise ValueError(f"its features have {size} dimensions, the base's have {dimensions}")
    return table


def _since(table: pa.Table, since: datetime) -> pa.Table:
    import pyarrow as pa
    import pyarrow.compute as pc

    return table.filter(pc.greater_equal(table["time"], pa.scalar(since, table.schema.field("time").type)))


def _features(table: pa.Table, dimensions: int) -> np.ndarray:
    flat = table["features"].combine_chunks().flatten()
    return np.asarray(flat.to_numpy(zero_copy_only=False), np.float32).reshape(-1, dimensions)


def _among(label_space: str, named: str | None, matched: Sequence[str]) -> Sequence[str] | None:
    """Which tasks an image was asked of."""
    if named is not None:
        return (named,)
    return tuple(matched) if label_space == "labels" else None
