"""What is known of a data set's files from earlier runs, kept in the store, so that no run reads them again.

One object per data set, `data/<sha256 of the source>/<number>-<sha256>-<nonce>.parquet`: a table of contents
(`training.data.contents`), in which a file is found by its path and its stamp. It only saves time: it may be deleted
at any time, a damaged one is read as an empty one, and of two that are written at once the next run takes either.
"""

from __future__ import annotations

import hashlib
import io
import logging
from typing import TYPE_CHECKING

from fusion.errors import BlobNotFoundError, StoreError
from fusion.store import Store
from fusion.store.blobs import canonical_json, new_nonce, put_file, scratch_file
from training.data.contents import Columns, schema

if TYPE_CHECKING:
    import pyarrow as pa

logger = logging.getLogger(__name__)

FORMAT = "1"
_TRIES = 3
"""A newer index may replace the one that was just listed."""


class DataIndex:
    """The index of one data set in one store."""

    def __init__(self, store: Store, source: str, columns: Columns) -> None:
        named = {"source": source, "image_column": columns.image, "label_column": columns.label}
        self.prefix = f"data/{hashlib.sha256(canonical_json(named)).hexdigest()}/"
        self._store = store
        self._source = source

    def read(self) -> tuple[pa.Table, str | None]:
        """The table, empty where there is none; and what to say of a damaged one. Raises the store's errors."""
        for _ in range(_TRIES):
            keys = self._keys()
            if not keys:
                break
            try:
                body = self._store.get(keys[-1])
            except BlobNotFoundError:
                continue
            found = _parsed(body, keys[-1])
            if found is not None:
                return found, None
            logger.warning("damaged index, files are read again source=%s key=%s", self._source, keys[-1])
            return schema().empty_table(), "the index of these files was damaged: all were read again"
        return schema().empty_table(), None

    def save(self, table: pa.Table) -> None:
        """Put a table in place of the one that is there. A store that refuses it costs the next run its time."""
        import pyarrow.parquet as pq
        from PIL import __version__ as decoder

        table = table.replace_schema_metadata({"format": FORMAT, "decoder": decoder})
        try:
            keys = self._keys()
            number = 1 + max((_number(key) for key in keys), default=0)
            nonce = new_nonce()
            with scratch_file(self._store, ".parquet") as path:
                pq.write_table(table, path, compression="zstd")
                put_file(self._store, path, nonce=nonce, key=f"{self.prefix}{number:08d}-{{sha256}}-{nonce}.parquet")
            for key in keys:
                if _number(key) < number:  # not one that another run has just written under the same number
                    self._store.delete(key)
        except StoreError as error:
            logger.warning(
                "the index of %s was not saved, so the next run reads its files again: %s", self._source, error
            )

    def _keys(self) -> list[str]:
        return [info.key for info in self._store.list(self.prefix)]


def _number(key: str) -> int:
    return int(key.rpartition("/")[2].partition("-")[0])


def _parsed(body: bytes, key: str) -> pa.Table | None:
    """The table of an index; None if it is damaged. One of another format is empty."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import __version__ as decoder

    if hashlib.sha256(body).hexdigest() != key.rpartition("/")[2].split("-")[1]:
        return None
    try:
        table = pq.read_table(io.BytesIO(body))
        metadata = table.schema.metadata or {}
        if metadata.get(b"format") != FORMAT.encode() or not table.schema.equals(schema()):
            return schema().empty_table()
    except (pa.ArrowException, OSError):
        return None
    return table if metadata.get(b"decoder") == decoder.encode() else _without_problems(table)


def _without_problems(table: pa.Table) -> pa.Table:
    import pyarrow as pa
    import pyarrow.compute as pc

    images = table["images"].combine_chunks()
    broken = pc.is_valid(images.flatten().field("problem"))
    files = pc.list_parent_indices(images).filter(broken)
    kept = pc.invert(pc.is_in(pa.array(range(len(table)), pa.int64()), value_set=files.cast(pa.int64())))
    return table.filter(kept)
