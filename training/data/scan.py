"""Reading many files of a data set in chunks: by threads of this process. `lanes.cluster_scan` uses all nodes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from typing import TYPE_CHECKING

from fusion.errors import DataError, StoreError
from training.data.contents import Unread, read_contents

if TYPE_CHECKING:
    import pyarrow as pa

Chunk = Sequence[Unread]
Scan = Callable[[Sequence[Chunk], bool], Iterator[tuple[int, "pa.Table"]]]
"""Reads chunks of files, and verifies their images if asked to: each chunk's number and contents, in any order."""

_CHUNK_FILES = 256
_CHUNK_BYTES = 64 << 20
_DIVIDED_BYTES = 256 << 20
"""A Parquet file above this is read in parts."""
_LOCAL_THREADS = 8
_S3_THREADS = 16


def scan_here(chunks: Sequence[Chunk], verify: bool) -> Iterator[tuple[int, pa.Table]]:
    """Read files in threads of this process: Pillow decodes, and S3 is waited for, without the GIL."""
    remote = any(one.file.path is None for chunk in chunks for one in chunk)
    threads = _S3_THREADS if remote else min(_LOCAL_THREADS, os.cpu_count() or 1)
    if len(chunks) < 4 * threads:  # few files: one by one
        finer = [(number, one) for number, chunk in enumerate(chunks) for one in chunk]
        with ThreadPoolExecutor(threads) as pool:
            rows = list(pool.map(lambda pair: (pair[0], read_contents([pair[1]], verify=verify)), finer))
        yield from _gathered(rows, len(chunks))
        return
    with ThreadPoolExecutor(threads) as pool:
        running = {pool.submit(read_contents, chunk, verify=verify): n for n, chunk in enumerate(chunks)}
        try:
            for done in as_completed(running):
                yield running[done], done.result()
        finally:
            for future in running:
                future.cancel()


def _gathered(rows: Sequence[tuple[int, pa.Table]], count: int) -> Iterator[tuple[int, pa.Table]]:
    import pyarrow as pa

    for number in range(count):
        yield number, pa.concat_tables([table for chunk, table in rows if chunk == number])


def chunks_of(unread: Sequence[Unread]) -> list[list[Unread]]:
    """Files, or parts of large ones, in chunks that are worth a task each. Raises `DataError`."""
    return _chunks(_divided(unread))


def _divided(unread: Sequence[Unread]) -> list[Unread]:
    """Large Parquet files in parts of a few row groups."""
    found = []
    for one in unread:
        if not (one.key.lower().endswith(".parquet") and one.size > _DIVIDED_BYTES):
            found.append(one)
            continue
        from training.data.parquet import ParquetImages

        try:
            sizes = ParquetImages(one.file, one.origin, one.columns).group_bytes
        except (OSError, StoreError) as error:
            raise DataError(f"{one.origin} can't be read: {error}") from error
        first, total = 0, 0
        for group, size in enumerate(sizes):
            total += size
            if total >= _CHUNK_BYTES or group == len(sizes) - 1:
                found.append(replace(one, groups=(first, group + 1), size=total))
                first, total = group + 1, 0
    return found


def _chunks(unread: Sequence[Unread]) -> list[list[Unread]]:
    chunks: list[list[Unread]] = [[]]
    total = 0
    for one in unread:
        if chunks[-1] and (total + one.size > _CHUNK_BYTES or len(chunks[-1]) >= _CHUNK_FILES):
            chunks.append([])
            total = 0
        chunks[-1].append(one)
        total += one.size
    return chunks
