"""Reading the images of a set: one by one where each is a file, in blocks where many share a file.

A row of a Parquet file can't be read without its row group, so images that lie together are read together, in blocks of
up to 64 MB of encoded bytes. Of a set of up to 2 GB all blocks stay in memory once they are read. Of a larger one only
those stay that the order of training needs now and next (`hold`), and the last few that anybody else asked for.

Letters: N images, K blocks.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import numpy as np

PLACE = np.dtype([("file", np.int32), ("group", np.int32), ("start", np.int64), ("size", np.int64)])
"""Where an image's encoded bytes are: in which file, from which byte (of Parquet: in which row group and row), and how
many there are."""
KEPT_BYTES = 2 << 30
"""Encoded bytes up to which a whole set is kept in memory. Decides the order of training, so it never changes."""
BLOCK_BYTES = 64 << 20
"""Encoded bytes after which a block ends. Decides the order of training, so it never changes."""
WINDOW_BYTES = 256 << 20
"""Encoded bytes of the blocks that are shuffled together. Decides the order of training, so it never changes."""
_ASKED_FOR_BYTES = 2 * BLOCK_BYTES
_READING_AHEAD = 2


class Reader(Protocol):
    """Reads images where they are. Safe to share between threads; raises `OSError`, `StoreError` or `DataError`."""

    hashes_bytes: bool
    """Whether the sha256 of an image is that of its bytes, so that it can be checked."""

    @property
    def is_remote(self) -> bool:
        """Whether images come over a network, so that it pays to wait for many at a time."""
        ...

    def read(self, place: np.void) -> bytes:
        """The encoded bytes of one image."""
        ...

    def origin(self, place: np.void) -> str:
        """What messages call it."""
        ...

    def problems(self, places: np.ndarray) -> list[str]:
        """Why some of them can't be decoded, as far as that is known."""
        ...

    def group(self, places: np.ndarray) -> np.ndarray:
        """Which images are read together, as one number each, int64 [N]; -1: each can be read by itself."""
        ...

    def read_together(self, places: np.ndarray) -> list[bytes]:
        """The encoded bytes of neighbours of one group, in the order of their places."""
        ...


class Blocks:
    """The encoded bytes of a set's images.

    Args:
        reader: of all of them.
        places: `PLACE` [N].
        kept_bytes: above this the set is read block by block, where it can be.
    """

    def __init__(self, reader: Reader, places: np.ndarray, *, kept_bytes: int) -> None:
        self._reader = reader
        self._places = places
        groups = reader.group(places)
        together = groups >= 0
        self.bytes = int(places["size"].sum())
        """Of all images, encoded."""
        self.of, self._order, self._first = _cut(places, groups)
        self.streamed = bool(together.all()) and self.bytes > kept_bytes and len(places) > 0
        """Whether the set is too large to be kept, and is read block by block."""
        self._kept: OrderedDict[int, Future[dict[int, bytes]]] = OrderedDict()
        self._held: frozenset[int] = frozenset()
        self._lock = threading.Lock()
        self._ahead: ThreadPoolExecutor | None = None

    @property
    def order(self) -> np.ndarray:
        """All images as they are best read: those of a block together, int64 [N]."""
        return np.argsort(self.of, kind="stable")

    @property
    def runs(self) -> np.ndarray:
        """Blocks with one number are best read one after the other, since a row group is passed from its beginning:
        int64 [K], ascending."""
        first = self._places[self._order[self._first[:-1]]]
        new = np.ones(len(first), np.int64)
        same_file = first["file"][1:] == first["file"][:-1]
        new[1:] = (first["group"][1:] < 0) | ~same_file | (first["group"][1:] != first["group"][:-1])
        return np.cumsum(new) - 1

    @property
    def in_order(self) -> list[np.ndarray]:
        """The images of every block, as they are stored."""
        return np.split(self._order, self._first[1:-1])

    def read(self, index: int) -> bytes:
        """The encoded bytes of one image."""
        block = int(self.of[index])
        return self._reader.read(self._places[index]) if block < 0 else self._block(block)[index]

    def hold(self, blocks: Sequence[int]) -> None:
        """Read these blocks ahead, in this order, in the background, and let go of all others. For a `streamed` set."""
        with self._lock:
            self._held = frozenset(blocks)
            for block in [block for block in self._kept if block not in self._held]:
                del self._kept[block]
            missing = [block for block in blocks if block not in self._kept]
            if missing and self._ahead is None:
                self._ahead = ThreadPoolExecutor(_READING_AHEAD, thread_name_prefix="blocks")
            for block in missing:
                assert self._ahead is not None, "made above"
                self._kept[block] = Future()
                self._ahead.submit(self._fill, block, self._kept[block])

    def close(self) -> None:
        """Let go of everything that is read ahead."""
        with self._lock:
            ahead, self._ahead = self._ahead, None
            self._held = frozenset()
            if self.streamed:
                self._kept.clear()
        if ahead:
            ahead.shutdown(cancel_futures=True)

    def _block(self, block: int) -> dict[int, bytes]:
        with self._lock:
            future = self._kept.get(block)
            mine = future is None
            if future is None:
                future = self._kept[block] = Future()
            self._kept.move_to_end(block)
            self._let_go()
        if mine:
            self._fill(block, future)
        return future.result()

    def _let_go(self) -> None:
        """Of a streamed set: all but the blocks that are held and the last ones asked for."""
        if not self.streamed:
            return
        others = [block for block in self._kept if block not in self._held]
        for block in others[: -max(1, _ASKED_FOR_BYTES // BLOCK_BYTES)]:
            del self._kept[block]

    def _fill(self, block: int, future: Future[dict[int, bytes]]) -> None:
        members = self._order[self._first[block] : self._first[block + 1]]
        try:
            read = self._reader.read_together(self._places[members])
            future.set_result(dict(zip(members.tolist(), read, strict=True)))
        except BaseException as error:
            with self._lock:
                if self._kept.get(block) is future:
                    del self._kept[block]
            future.set_exception(error)


def _cut(places: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cut groups into blocks of neighbours. A block ends where `BLOCK_BYTES` are exceeded, so a small group is one.

    Returns: the block of each image, int64 [N], -1 where it is read by itself; the images in the order of blocks and
        places; and where in that order each block begins, int64 [K + 1].
    """
    order = np.lexsort([places["start"], groups, places["file"]])
    order = order[groups[order] >= 0]
    file, group, size = places["file"][order], groups[order], places["size"][order]
    new_group = np.ones(len(order), bool)
    new_group[1:] = (file[1:] != file[:-1]) | (group[1:] != group[:-1])
    before = np.cumsum(size) - size
    begins = before - np.repeat(before[new_group], np.diff([*np.flatnonzero(new_group), len(order)]))
    piece = begins // BLOCK_BYTES
    new_block = new_group.copy()
    new_block[1:] |= piece[1:] != piece[:-1]
    block = np.cumsum(new_block) - 1
    of = np.full(len(places), -1, np.int64)
    of[order] = block
    return of, order, np.append(np.flatnonzero(new_block), len(order))
