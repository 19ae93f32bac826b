"""A row of the request log: one image that was asked about, and its answer. docs/format.md describes the files.

Letter: D dimensions of the embedding.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa

_ROW_BYTES = 1500
"""About what a row takes in memory beside its features and its image."""


@dataclass(frozen=True)
class Row:
    """One image.

    Attributes:
        time: when it was answered, Unix seconds.
        request: the request's id, as in the answer's `X-Request-Id`.
        version: that answered.
        label_space: `task`, `labels` or `seen`.
        named: the task that the caller named.
        matched: with `labels`: the tasks that were taught some of the labels.
        routed: the task that the image most likely belongs to, where none was named.
        experts: those that were consulted.
        task, label, probability: of the best candidate, also where the answer is "unknown".
        familiarity, unknown: as in the answer.
        views: how many images the answer is for; the row is of the first.
        features: the base's unit features, float16 [D].
        image: as it was received; None unless the configuration asks for it.
    """

    time: float
    request: str
    version: int
    label_space: str
    named: str | None
    matched: tuple[str, ...]
    routed: str | None
    experts: tuple[str, ...]
    task: str | None
    label: str
    probability: float
    familiarity: float | None
    unknown: bool | None
    views: int
    features: np.ndarray
    image: bytes | None

    @property
    def num_bytes(self) -> int:
        """About what it takes in memory."""
        return _ROW_BYTES + self.features.nbytes + len(self.image or b"")


def schema(dimensions: int) -> pa.Schema:
    """Of a file whose features have D dimensions."""
    import pyarrow as pa

    types: dict[str, Any] = {
        "time": pa.timestamp("us", tz="UTC"),
        "request": pa.string(),
        "version": pa.int32(),
        "label_space": pa.string(),
        "named": pa.string(),
        "matched": pa.list_(pa.string()),
        "routed": pa.string(),
        "experts": pa.list_(pa.string()),
        "task": pa.string(),
        "label": pa.string(),
        "probability": pa.float32(),
        "familiarity": pa.float32(),
        "unknown": pa.bool_(),
        "views": pa.int32(),
        "features": pa.list_(pa.float16(), dimensions),
        "image": pa.binary(),
    }
    return pa.schema([pa.field(name, kind) for name, kind in types.items()])


def to_parquet(rows: Sequence[Row]) -> bytes:
    """A file of at least one row, all of one base."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    layout = schema(len(rows[0].features))
    columns: dict[str, Any] = {field.name: [getattr(row, field.name) for row in rows] for field in fields(Row)}
    columns["time"] = [round(time * 1e6) for time in columns["time"]]
    flat = pa.array(np.concatenate(columns["features"]), pa.float16())
    columns["features"] = pa.FixedSizeListArray.from_arrays(flat, len(rows[0].features))
    body = io.BytesIO()
    pq.write_table(pa.table(columns, schema=layout), body, compression="zstd")
    return body.getvalue()
