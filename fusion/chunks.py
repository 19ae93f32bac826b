"""Chunks: how a model streams through the kernels, a few hundred thousand elements at a time, on a few threads.

A chunk is a run of whole rows of one tensor that starts on a byte boundary of the plane. The peak memory of any pass is
a few chunks per thread, however large the model and however many its tasks. A vector is one row, so a state dict that
is one flat vector is one chunk.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np

from fusion.tensors import TensorSpec

CHUNK_ELEMENTS = 1 << 18

Result = TypeVar("Result")


@dataclass(frozen=True)
class Chunk:
    """Elements [start, stop) of a tensor, flat: rows [first_row, first_row + num_rows)."""

    name: str
    start: int
    stop: int
    first_row: int
    num_rows: int

    @property
    def size(self) -> int:
        return self.stop - self.start

    @property
    def first_byte(self) -> int:
        """Where the chunk begins in a plane, bytes."""
        return self.start // 8

    @property
    def num_bytes(self) -> int:
        """Size of its part of a plane, B."""
        return (self.size + 7) // 8

    @cached_property
    def rows(self) -> np.ndarray:
        """Where each row begins, and last the chunk's size: int64 [rows + 1]."""
        return np.arange(self.num_rows + 1, dtype=np.int64) * (self.size // self.num_rows)

    @cached_property
    def whole(self) -> np.ndarray:
        """The chunk as one segment: int64 [2]."""
        return np.array([0, self.size], np.int64)


def chunks_of(specs: Mapping[str, TensorSpec], max_elements: int = CHUNK_ELEMENTS) -> list[Chunk]:
    """All tensors in chunks of at most `max_elements`, or of up to eight rows where those have more elements."""
    chunks = []
    for name, spec in specs.items():
        num_rows, size = spec.num_rows, spec.elements
        width = size // num_rows
        aligned = 8 // math.gcd(8, width) if width else 1
        step = max(1, max_elements // max(width, 1)) // aligned * aligned or aligned
        for row in range(0, num_rows, step):
            last = min(row + step, num_rows)
            chunks.append(Chunk(name, row * width, last * width, row, last - row))
    return chunks


def map_chunks(work: Callable[[Any], Result], items: Sequence[Any], *, threads: int) -> list[Result]:
    """`work` for every item, on threads; results in order. The first error is raised once all threads have stopped."""
    if threads <= 1 or len(items) <= 1:
        return [work(item) for item in items]
    with ThreadPoolExecutor(threads, thread_name_prefix="chunk") as pool:
        return map_in(pool, work, items)


def map_in(pool: ThreadPoolExecutor, work: Callable[[Any], Result], items: Iterable[Any]) -> list[Result]:
    """`work` for every item, on a pool's threads; results and errors as in `map_chunks`."""
    futures = [pool.submit(work, item) for item in items]
    try:
        return [future.result() for future in futures]
    except BaseException:
        for future in futures:
            future.cancel()
        wait(futures)  # whoever handles the error closes files that a running thread may still write to
        raise


class Buffers:
    """Arrays that a thread reuses for its next chunk: allocating them costs more than filling them."""

    def __init__(self) -> None:
        self._local = threading.local()

    def take(self, use: str, size: int, dtype: Any = np.float32) -> np.ndarray:
        """An array [size], not cleared. Valid until the thread takes a buffer for the same use again."""
        held: np.ndarray | None = getattr(self._local, use, None)
        if held is None or held.size < size or held.dtype != dtype:
            held = np.empty(size, dtype)
            setattr(self._local, use, held)
        return held[:size]


def total(parts: Iterable[np.ndarray], like: np.ndarray) -> np.ndarray:
    """Sum of float64 arrays, in their order; zeros in the shape of `like` if there are none."""
    result = np.zeros_like(like, dtype=np.float64)
    for part in parts:
        result += part
    return result
