"""Reads the images of files: a file that is an image, a row of a Parquet file, a member of a tar file."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from training.data.contents import WHOLE_FILE, Columns, name_of
from training.data.files import File

if TYPE_CHECKING:
    from training.data.parquet import ParquetImages

_OPEN_TABLES = 8
_CONTAINERS = (".parquet", ".tar")
_DENSE = 2
"""Neighbours in a tar file are read in one go where what lies between them is at most as much as they are."""


class FileReader:
    """Images in files. Implements `training.data.blocks.Reader`.

    Args:
        files, origins: the files and what messages call them.
        columns: of the tables among them.
        called: names of images inside files, by file and start.
        problems: why images can't be decoded, likewise.
    """

    hashes_bytes = True

    def __init__(
        self,
        files: Sequence[File],
        origins: Sequence[str],
        columns: Columns,
        *,
        called: Mapping[tuple[int, int], str],
        problems: Mapping[tuple[int, int], str],
    ) -> None:
        self._files = files
        self._origins = origins
        self._columns = columns
        self._called = called
        self._problems = problems
        self._is_container = np.array([origin.lower().endswith(_CONTAINERS) for origin in origins], bool)
        self._tables: OrderedDict[int, ParquetImages] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def is_remote(self) -> bool:
        """Whether images come over a network, so that it pays to wait for many at a time."""
        return any(file.path is None for file in self._files[:1])

    def joined(self, other: FileReader) -> FileReader:
        """Of both one's files, the other's after its own."""
        count = len(self._files)
        called, problems = (
            {**own, **{(file + count, start): text for (file, start), text in others.items()}}
            for own, others in ((self._called, other._called), (self._problems, other._problems))
        )
        files, origins = [*self._files, *other._files], [*self._origins, *other._origins]
        return FileReader(files, origins, self._columns, called=called, problems=problems)

    def read(self, place: np.void) -> bytes:
        """The encoded bytes of one image."""
        number, start, size = int(place["file"]), int(place["start"]), int(place["size"])
        if place["group"] != WHOLE_FILE:
            return self._table(number).read(int(place["group"]), np.array([start]))[0]
        file = self._files[number]
        return file.read(start, start + size) if self._is_container[number] else file.read()

    def read_together(self, places: np.ndarray) -> list[bytes]:
        """Those of neighbours in one file, ascending."""
        number, starts = int(places["file"][0]), places["start"]
        if places["group"][0] != WHOLE_FILE:
            return self._table(number).read(int(places["group"][0]), starts)
        ends = starts + places["size"]
        first, last = int(starts[0]), int(ends.max())
        if last - first > _DENSE * int(places["size"].sum()):
            return [self.read(place) for place in places]
        data = memoryview(self._files[number].read(first, last))
        return [bytes(data[start - first : end - first]) for start, end in zip(starts, ends, strict=True)]

    def group(self, places: np.ndarray) -> np.ndarray:
        """The row group; 0 in a tar file; -1 where the image is a file."""
        return np.where(self._is_container[places["file"]], np.maximum(places["group"], 0), -1).astype(np.int64)

    def origin(self, place: np.void) -> str:
        """The file, with the row or the name inside it."""
        number, start = int(place["file"]), int(place["start"])
        return name_of(self._origins[number], int(place["group"]), start, self._called.get((number, start)))

    def problems(self, places: np.ndarray) -> list[str]:
        """Why some can't be decoded."""
        if not self._problems:
            return []
        keys = zip(places["file"].tolist(), places["start"].tolist(), strict=True)
        return [self._problems[key] for key in keys if key in self._problems]

    def _table(self, number: int) -> ParquetImages:
        from training.data.parquet import ParquetImages

        with self._lock:
            if number not in self._tables:
                self._tables[number] = ParquetImages(self._files[number], self._origins[number], self._columns)
            self._tables.move_to_end(number)
            while len(self._tables) > _OPEN_TABLES:
                self._tables.popitem(last=False)
            return self._tables[number]
