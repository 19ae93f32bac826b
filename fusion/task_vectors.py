"""Task vectors, read chunk by chunk from an expert and its base, or from an archive.

An expert is a full state dict: its difference from the base is fused, and what is not fused (buffers) is kept as it is.
An archive in float16 or bfloat16 holds the differences themselves, at half the size of a checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property
from typing import Protocol

import numpy as np

from fusion.chunks import Buffers, Chunk, chunks_of
from fusion.errors import StateDictError
from fusion.tensors import TensorFile, TensorSpec, as_array, check_same_layout

DELTA = "delta/"
BUFFER = "buffer/"


class TaskVector(Protocol):
    """One expert's task vector, and the buffers in which it differs from the base."""

    label: str
    """How error messages refer to it."""

    def delta(self, chunk: Chunk, buffers: Buffers, *, out_N: np.ndarray | None = None) -> np.ndarray:
        """delta over a chunk, float32 [N], in `out_N` if given, else in one of the thread's buffers."""
        ...

    def changed_buffers(self) -> Mapping[str, TensorSpec]:
        """Specs of the buffers that differ from the base's, by `buffer/NAME`, in the base's dtypes."""
        ...

    def buffer(self, key: str) -> np.ndarray:
        """One of those buffers (uint16 for bfloat16)."""
        ...

    def not_finite(self, name: str) -> str:
        """Why a tensor of the task vector is not finite, for a message: whose fault it is, and what to do."""
        ...


class ExpertVector:
    """delta = theta - theta_0 of a full state dict. Raises `StateDictError` unless its layout is the base's."""

    def __init__(self, base: TensorFile, weights: TensorFile) -> None:
        check_same_layout(base, weights)
        self.label = weights.label
        self._base = base
        self._weights = weights

    def delta(self, chunk: Chunk, buffers: Buffers, *, out_N: np.ndarray | None = None) -> np.ndarray:
        base_N, delta_N = buffers.take("base", chunk.size), buffers.take("delta", chunk.size)
        self._base.read_float32(chunk.name, chunk.start, base_N)
        self._weights.read_float32(chunk.name, chunk.start, delta_N)
        moved_N = delta_N if out_N is None else out_N
        with np.errstate(invalid="ignore"):
            np.subtract(delta_N, base_N, out=moved_N)
        if not math.isfinite(float(moved_N.sum())):
            self._equal_infinities(chunk, base_N, moved_N, buffers.take("own", chunk.size))
        return moved_N

    def _equal_infinities(self, chunk: Chunk, base_N: np.ndarray, moved_N: np.ndarray, own_N: np.ndarray) -> None:
        """No change where base and expert have the same infinity, as in an attention mask: it is not NaN."""
        self._weights.read_float32(chunk.name, chunk.start, own_N)
        moved_N[np.isinf(base_N) & (base_N == own_N)] = 0

    def changed_buffers(self) -> Mapping[str, TensorSpec]:
        return self._changed

    @cached_property
    def _changed(self) -> dict[str, TensorSpec]:
        """Compared only once: a file's layout needs the result, and filling the file needs it again."""
        return {
            BUFFER + name: self._base.specs[name]
            for name in self._base.buffer_names()
            if self.buffer(BUFFER + name).tobytes() != self._base.array(name).tobytes()
        }

    def buffer(self, key: str) -> np.ndarray:
        name = key.removeprefix(BUFFER)
        own, wanted = self._weights.specs[name], self._base.specs[name]
        if own.dtype == wanted.dtype:
            return self._weights.array(name)
        return as_array(self._weights.tensor(name).to(self._base.tensor(name).dtype))  # a bf16 expert, an fp32 base

    def not_finite(self, name: str) -> str:
        base = self._base.float32(name)
        if np.isnan(base).any() or (np.isinf(base) & (base != self._weights.float32(name))).any():
            return (
                f"the base ({self._base.label}): its tensor {name!r} holds NaN or infinite values, so no expert "
                "of it can be fused. Use an undamaged file of the base"
            )
        return _diverged(self.label, name)


class ArchivedVector:
    """delta as an archive holds it: `delta/NAME` in float16 or bfloat16, `buffer/NAME` as the expert had it."""

    def __init__(self, archive: TensorFile) -> None:
        self.label = archive.label
        self._archive = archive

    def delta(self, chunk: Chunk, buffers: Buffers, *, out_N: np.ndarray | None = None) -> np.ndarray:
        delta_N = buffers.take("delta", chunk.size) if out_N is None else out_N
        self._archive.read_float32(DELTA + chunk.name, chunk.start, delta_N)
        return delta_N

    def changed_buffers(self) -> Mapping[str, TensorSpec]:
        return {name: spec for name, spec in self._archive.specs.items() if name.startswith(BUFFER)}

    def buffer(self, key: str) -> np.ndarray:
        return self._archive.array(key)

    def not_finite(self, name: str) -> str:
        return _diverged(self.label, name)


def open_archive(base: TensorFile, archive: TensorFile) -> TaskVector:
    """The task vector of an archive, which is the expert's own file or a file of differences."""
    if any(name.startswith(DELTA) for name in archive.specs):
        return ArchivedVector(archive)
    return ExpertVector(base, archive)


def check_finite(sums: np.ndarray, vector: TaskVector, name: str) -> None:
    """Refuse a task vector whose sums of |delta| are not finite. Raises `StateDictError`."""
    if not math.isfinite(float(sums.sum())):
        raise StateDictError(vector.not_finite(name))


def check_expert_finite(base: TensorFile, weights: TensorFile) -> None:
    """Refuse an expert before anything is made of it. One pass over both files. Raises `StateDictError`."""
    vector, buffers = ExpertVector(base, weights), Buffers()
    for chunk in chunks_of({name: base.specs[name] for name in base.fused_names()}):
        with np.errstate(invalid="ignore", over="ignore"):
            check_finite(np.abs(vector.delta(chunk, buffers)), vector, chunk.name)


def _diverged(label: str, name: str) -> str:
    return (
        f"{label}: tensor {name!r} holds NaN or infinite values: its training diverged. Train it again with a lower "
        "learning rate"
    )
