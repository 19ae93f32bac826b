"""Integers as bytes: runs of similar spread share a class, and each class has Huffman codes of its own.

A run is a sequence of integers that belong together, such as one side of a component. Its class says how large the
integers are: bits 0 to 5 the third of an octave of their root mean square, bits 6 and 7 how many bytes each takes (1, 2
or 4). A class's runs are concatenated, split into planes of bytes (all lowest bytes first) and compressed by zlib with
Huffman coding alone: there is nothing to match, and every language has a zlib.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping

import numpy as np

from fusion.errors import StateDictError

_DTYPES = (np.dtype("<i1"), np.dtype("<i2"), np.dtype("<i4"))
_OCTAVE_OF_ONE = 20


class SymbolWriter:
    """Collects runs, and compresses each class once all are known."""

    def __init__(self) -> None:
        self._runs: dict[int, list[np.ndarray]] = {}

    def add(self, values: np.ndarray) -> int:
        """Add a run of int32 values and return its class."""
        top = int(np.abs(values).max(initial=0))
        width = 0 if top < 1 << 7 else 1 if top < 1 << 15 else 2
        spread = math.sqrt(float(np.square(values, dtype=np.float64).mean())) if values.size else 0.0
        octave = _OCTAVE_OF_ONE + round(3 * math.log2(spread)) if spread > 0 else 0
        kind = min(max(octave, 0), 63) | width << 6
        self._runs.setdefault(kind, []).append(values.astype(_DTYPES[width]))
        return kind

    def streams(self) -> dict[int, np.ndarray]:
        """The compressed bytes of each class, uint8."""
        return {kind: _compressed(np.concatenate(runs)) for kind, runs in sorted(self._runs.items())}


class SymbolReader:
    """Gives runs back, in the order in which they were added. Not for several threads at once.

    Args:
        streams: what `SymbolWriter.streams` gave.
        label: how errors refer to where they come from.
    """

    def __init__(self, streams: Mapping[int, np.ndarray], label: str) -> None:
        self._label = label
        self._values = {kind: self._expanded(kind, stream) for kind, stream in streams.items()}
        self._taken = dict.fromkeys(streams, 0)

    def take(self, kind: int, count: int) -> np.ndarray:
        """The next `count` values of a class, int32. Raises `StateDictError` if there are fewer."""
        start = self._taken.get(kind, 0)
        found = self._values.get(kind, np.empty(0, np.int32))[start : start + count]
        if found.size != count:
            raise StateDictError(f"{self._label}: class {kind} of its symbols ends early: the trigger is damaged")
        self._taken[kind] = start + count
        return found.astype(np.int32)

    def _expanded(self, kind: int, stream: np.ndarray) -> np.ndarray:
        try:
            body = zlib.decompress(stream.tobytes())
            width = _DTYPES[kind >> 6].itemsize
            planes = np.frombuffer(body, np.uint8).reshape(width, len(body) // width)
        except (zlib.error, ValueError, IndexError) as error:
            raise StateDictError(f"{self._label}: class {kind} of its symbols can't be read ({error})") from error
        return np.ascontiguousarray(planes.T).view(_DTYPES[kind >> 6])[:, 0]


def _compressed(values: np.ndarray) -> np.ndarray:
    planes = np.ascontiguousarray(values.view(np.uint8).reshape(-1, values.itemsize).T)
    packer = zlib.compressobj(9, zlib.DEFLATED, zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL, zlib.Z_HUFFMAN_ONLY)
    return np.frombuffer(packer.compress(planes.tobytes()) + packer.flush(), np.uint8)
