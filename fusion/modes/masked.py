"""What the modes with masks share: scales from conserved norms, tau in fewer bits, decoupling by mask.

A task's mean magnitude n is stored with its trigger and conserved: however tau changes, lambda = n / D with
D = mean(m |tau|) restores it. The paper has one n per task (a sum over tensors); with `scales: tensor` or `row` there
is one per tensor or row, and lambda is not stored at all: it follows from the trigger and tau.

Suffixes: N elements of a chunk, T tasks, S segments. Source: ConDU (arXiv 2503.10705), unify and decouple.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from fusion.chunks import Chunk, total
from fusion.kernels import StateDtype
from fusion.modes.mode import Mode
from fusion.modes.workbench import Workbench
from fusion.tensors import TensorFile, TensorSpec
from fusion.versions.state import TaskEntry

Scales = Literal["task", "tensor", "row"]

_SAFETENSORS_NAMES: dict[StateDtype, str] = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


UNIFIED, LAST_FLIP = "unified", "last_flip"
"""The names of tau and last_flip in a state."""


@dataclass(frozen=True)
class MaskedMode(Mode):
    """What modes with masks have in common."""

    traces = "the unified vector keeps the magnitudes and signs that the task contributed"

    scales: Scales = "task"
    """One scale (lambda) per `task`, as in the paper, per `tensor` or per `row`."""
    dtype: StateDtype = "float32"
    """What tau is stored in. `float16` and `bfloat16` halve its size, at a rounding error that reports show."""

    @classmethod
    def more_variants(cls) -> Mapping[str, Mapping[str, Any]]:
        return {f"{cls.name}-{scales}": {"scales": scales} for scales in ("tensor", "row")}

    def title(self) -> str:
        scales = "" if self.scales == "task" else f", one scale per {self.scales}"
        return self.name + scales + ("" if self.dtype == "float32" else f", tau in {self.dtype}")

    def task_scale(self, norm: float, masked: float) -> float | None:
        """A task's lambda for the manifest; None with one per tensor or row, which is not stored."""
        return rescaler(norm, masked) if self.scales == "task" else None


def specs_in(bench: Workbench, dtype: StateDtype) -> dict[str, TensorSpec]:
    """Layout of a vector, such as tau, that is stored in this dtype."""
    return {name: TensorSpec(_SAFETENSORS_NAMES[dtype], spec.shape) for name, spec in bench.specs.items()}


def stored(values_N: np.ndarray, dtype: StateDtype) -> np.ndarray:
    """Values that are already rounded, in the form in which they are written (bfloat16 as its 16 bits)."""
    if dtype == "float16":
        return values_N.astype(np.float16)
    return (values_N.view(np.uint32) >> 16).astype(np.uint16) if dtype == "bfloat16" else values_N


def norm_specs(bench: Workbench, scales: Scales) -> dict[str, TensorSpec]:
    """Layout of the n stored in a trigger: nothing with one scale per task, whose n is in the record."""
    if scales == "task":
        return {}
    rows = {name: spec.num_rows if scales == "row" else 1 for name, spec in bench.specs.items()}
    return {f"norm/{name}": TensorSpec("F32", (count,)) for name, count in rows.items()}


def segments(chunk: Chunk, scales: Scales) -> np.ndarray:
    """Where each run of elements that share a scale begins in a chunk, then the chunk's size: int64 [S + 1]."""
    return chunk.rows if scales == "row" else chunk.whole


def rescale(norms: np.ndarray, masked: np.ndarray) -> np.ndarray:
    """lambda = n / D, float32, and 0 where nothing of the task is left in tau."""
    return np.divide(norms, masked, out=np.zeros_like(masked), where=masked > 0).astype(np.float32)


def rescaler(norm: float, masked: float) -> float:
    """lambda = n / D of one task, and 0 where nothing of it is left in tau."""
    return norm / masked if masked > 0 else 0.0


def per_element(sums: np.ndarray, size: int) -> np.ndarray:
    """Sums over a tensor's elements as their mean; 0 for an empty tensor."""
    return sums / size if size else sums * 0


class MaskedState:
    """tau, last_flip and the triggers of some tasks, read chunk by chunk, and the scales that follow from them."""

    def __init__(
        self,
        bench: Workbench,
        unified: TensorFile,
        last_flip: TensorFile | None,
        entries: Sequence[TaskEntry],
        scales: Scales,
    ) -> None:
        self.triggers = bench.triggers(entries)
        self.sessions_T = np.array([entry.session for entry in entries], np.int64)
        self._bench = bench
        self._unified = unified
        self._last_flip = last_flip
        self._scales = scales
        self._task_scales_T = np.array([entry.scale or 0.0 for entry in entries], np.float32)
        self._tensor_scales: dict[str, np.ndarray] = {}
        if scales == "tensor":
            self._tensor_scales = self._fit_tensors()

    def tau(self, chunk: Chunk) -> np.ndarray:
        """float32 [N], in one of the thread's buffers."""
        tau_N = self._bench.buffers.take("tau", chunk.size)
        self._unified.read_float32(chunk.name, chunk.start, tau_N)
        return tau_N

    def last_flip(self, chunk: Chunk) -> np.ndarray | None:
        """uint8 or uint16 [N], a new array; None in `joint`, where no bit is ever lost."""
        return self._last_flip.read(chunk.name, chunk.start, chunk.stop) if self._last_flip else None

    def planes(self, chunk: Chunk) -> np.ndarray:
        return self._bench.read_planes(self.triggers, chunk)

    def scales(
        self, chunk: Chunk, tau_N: np.ndarray, last_flip_N: np.ndarray | None, planes_TB: np.ndarray
    ) -> np.ndarray:
        """lambda of every task in each segment of a chunk, float32 [S, T]."""
        if self._scales == "task":
            return self._task_scales_T[None, :]
        if self._scales == "tensor":
            return self._tensor_scales[chunk.name]
        sums_ST = self._bench.kernels.masked_sums(tau_N, last_flip_N, planes_TB, self.sessions_T, chunk.rows)
        norms_ST = np.stack([self._norms(file, chunk) for file in self.triggers], axis=1)
        return rescale(norms_ST.astype(np.float64), sums_ST / np.maximum(np.diff(chunk.rows), 1)[:, None])

    @staticmethod
    def _norms(trigger: TensorFile, chunk: Chunk) -> np.ndarray:
        return trigger.read(f"norm/{chunk.name}", chunk.first_row, chunk.first_row + chunk.num_rows)

    def _fit_tensors(self) -> dict[str, np.ndarray]:
        """lambda of every task for each tensor: one pass over tau and the planes."""

        def sums(chunk: Chunk) -> np.ndarray:
            return self._bench.kernels.masked_sums(
                self.tau(chunk), self.last_flip(chunk), self.planes(chunk), self.sessions_T, chunk.whole
            )

        parts: dict[str, list[np.ndarray]] = {}
        for chunk, part in zip(self._bench.chunks, self._bench.map(sums), strict=True):
            parts.setdefault(chunk.name, []).append(part)
        found = {}
        for name, spec in self._bench.specs.items():
            norms_T = np.array([file.read(f"norm/{name}")[0] for file in self.triggers], np.float64)
            masked = per_element(total(parts.get(name, []), norms_T[None]), spec.elements)
            found[name] = rescale(norms_T[None], masked)
        return found


class MaskedDecoder:
    """One task of a masked state, piece by piece."""

    def __init__(
        self, bench: Workbench, unified: TensorFile, last_flip: TensorFile | None, entry: TaskEntry, scales: Scales
    ) -> None:
        self._bench = bench
        self._state = MaskedState(bench, unified, last_flip, [entry], scales)
        self._segments = scales
        self._session = entry.session

    def delta(self, chunk: Chunk) -> np.ndarray:
        state = self._state
        tau_N, last_flip_N, planes_TB = state.tau(chunk), state.last_flip(chunk), state.planes(chunk)
        scales_S = np.ascontiguousarray(state.scales(chunk, tau_N, last_flip_N, planes_TB)[:, 0])
        starts_S = segments(chunk, self._segments)
        return self._bench.kernels.decouple(tau_N, last_flip_N, planes_TB[0], self._session, scales_S, starts_S)

    def bits(self, chunk: Chunk) -> tuple[int, int]:
        plane_B, last_flip_N = self._state.planes(chunk)[0], self._state.last_flip(chunk)
        written = int(np.bitwise_count(plane_B).sum())
        if last_flip_N is None:
            return written, written
        kept_B = np.packbits(last_flip_N <= self._session, bitorder="little")
        return written, int(np.bitwise_count(plane_B & kept_B).sum())
