"""Mode `lowrank` (the default): each task is a few quantised components per matrix. Tasks share nothing.

Fine-tuning moves a matrix along few directions, and these carry the answer. So a task vector's matrices are kept as
components with integer factors, everything else as integers, all at quantiser steps that follow from one number,
Delta = quality x the root mean square of the matrices' elements. A trigger is one small blob that decodes to the same
bits on every machine; adding or removing a task touches no other.

Letters: R rows and C columns of a tensor taken as a matrix [first dimension, rest], K components, T fused tensors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import numpy as np
from annotated_types import Ge, Gt

from fusion.chunks import Chunk
from fusion.errors import ConfigError
from fusion.factors.algebra import Algebra, open_algebra
from fusion.factors.trigger import (
    Encoded,
    Factored,
    Integers,
    Kind,
    Raw,
    TriggerWriter,
    in_components,
    in_integers,
    read_trigger,
    tell_of,
)
from fusion.modes.mode import ComponentParts, Mode, RowParts
from fusion.modes.registry import register
from fusion.modes.workbench import NewExpert, Workbench, copy_buffers
from fusion.task_vectors import TaskVector, check_finite
from fusion.tensors import TensorFile, TensorSpec
from fusion.versions.state import FusedState

_STEP_OF_VECTORS, _STEP_OF_DEPTHWISE, _STEP_OF_ROWS = 1.0, 0.35, 0.5
"""Quantiser steps of what is no matrix, in units of Delta."""
_FEW_ROWS = 4
"""A matrix of which at most one row in so many moved, such as a token table, is kept row by row."""
_BLOCK_ROWS = 1024
_BISECTIONS = 8
_COARSEST = 64.0
"""How much coarser than `quality` steps may become to fit `max_bytes`."""


@register
@dataclass(frozen=True)
class LowRank(Mode):
    """Mode `lowrank` over whole states."""

    name = "lowrank"

    quality: Annotated[float, Gt(0)] = 1.0
    """Quantiser step in units of the root mean square change of the task's matrices: smaller is finer and larger."""
    max_bytes: Annotated[int, Ge(1)] | None = None
    """Most bytes of a trigger: steps become coarser until it fits. Null: what `quality` takes."""

    def fuse(self, bench: Workbench, state: FusedState, new: Sequence[NewExpert]) -> FusedState:
        algebra = open_algebra(bench.device)
        for expert in new:
            session = state.session + 1
            trigger = self._encode(bench, expert.vector, algebra)
            with bench.blobs(trigger.layout() | dict(expert.vector.changed_buffers())) as (blob,):
                for name, values in trigger.tensors.items():
                    blob.write(name, values)
                copy_buffers(expert.vector, blob)
            entry = bench.put_record(expert, blob.ref, trigger.norm, session=session)
            state = replace(state, session=session, tasks={**state.tasks, expert.task: entry})
        return state

    def rebuild(self, bench: Workbench, experts: Sequence[NewExpert]) -> FusedState:
        return self.fuse(bench, FusedState(), experts)

    def decoder(self, bench: Workbench, state: FusedState, task: str) -> LowRankDecoder:
        return LowRankDecoder(bench.trigger(state.tasks[task]), bench.specs, open_algebra(bench.device))

    def _encode(self, bench: Workbench, vector: TaskVector, algebra: Algebra) -> TriggerWriter:
        measured = bench.map(lambda name: _measure(bench, vector, name), list(bench.specs))
        trigger = _encode(bench, vector, measured, self.quality, algebra)
        if self.max_bytes is None or trigger.num_bytes <= self.max_bytes:
            return trigger
        fits, low, high = None, 0.0, math.log(_COARSEST)
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            trigger = _encode(bench, vector, measured, self.quality * math.exp(middle), algebra)
            if trigger.num_bytes <= self.max_bytes:
                fits, high = trigger, middle
            else:
                low = middle
        if fits is None:
            raise ConfigError(
                f"{vector.label}: no trigger of at most {self.max_bytes} bytes keeps enough of it (max_bytes): at "
                f"{_COARSEST:.0f} times the step of quality {self.quality:g} it still takes {trigger.num_bytes}"
            )
        return fits


@dataclass(frozen=True)
class _Measured:
    """A tensor of a task vector: how it will be kept, and the sums that its step follows from.

    Attributes:
        factor: of the step, in units of Delta, where it is kept as integers.
        norm: mean |delta|, as the record has it.
    """

    name: str
    kind: Kind
    factor: float
    squares: float
    elements: int
    norm: float


def _measure(bench: Workbench, vector: TaskVector, name: str) -> _Measured:
    delta = _read(bench, vector, name)
    size, spec = delta.size, bench.specs[name]
    sums = squares = 0.0
    for first in range(0, len(delta), _BLOCK_ROWS):  # in float64, without a float64 copy of the whole
        block = delta[first : first + _BLOCK_ROWS].astype(np.float64)
        sums += float(np.abs(block).sum())
        squares += float(np.square(block).sum())
    check_finite(np.atleast_1d(sums), vector, name)
    kind, factor = Kind.GRID, _STEP_OF_VECTORS
    if not sums:
        kind = Kind.ZERO
    elif len(spec.shape) > 2 and spec.shape[1] == 1:
        factor = _STEP_OF_DEPTHWISE
    elif len(spec.shape) > 1:
        moved = int((delta != 0).any(1).sum())
        kind, factor = (Kind.ROWS, _STEP_OF_ROWS) if moved <= len(delta) // _FEW_ROWS else (Kind.COMPONENTS, 0.0)
    return _Measured(name, kind, factor, squares, size, sums / max(size, 1))


def _encode(
    bench: Workbench, vector: TaskVector, measured: Sequence[_Measured], quality: float, algebra: Algebra
) -> TriggerWriter:
    matrices = [one for one in measured if one.kind == Kind.COMPONENTS] or measured
    mean = sum(one.squares for one in matrices) / max(sum(one.elements for one in matrices), 1)
    delta_step = quality * math.sqrt(mean)
    trigger = TriggerWriter(sum(one.norm for one in measured), quality)
    encoded = bench.map(lambda one: _encoded(bench, vector, one, delta_step, algebra), measured)
    for one, found in zip(measured, encoded, strict=True):
        trigger.add(one.name, found)
    return trigger


def _encoded(bench: Workbench, vector: TaskVector, one: _Measured, step: float, algebra: Algebra) -> Encoded:
    if one.kind == Kind.ZERO:
        return Encoded(Kind.ZERO)
    delta = _read(bench, vector, one.name)
    if one.kind == Kind.COMPONENTS:
        return in_components(delta, step, algebra)
    return in_integers(one.kind, delta, one.factor * step)


def _read(bench: Workbench, vector: TaskVector, name: str) -> np.ndarray:
    """A whole tensor of a task vector as a matrix [R, C], in the thread's buffer."""
    spec = bench.specs[name]
    whole = Chunk(name, 0, spec.elements, 0, spec.num_rows)
    return vector.delta(whole, bench.buffers).reshape(spec.num_rows, -1)


class LowRankDecoder:
    """One task's trigger, its symbols expanded, decoded piece by piece."""

    def __init__(self, trigger: TensorFile, specs: Mapping[str, TensorSpec], algebra: Algebra) -> None:
        self._algebra = algebra
        self._specs = specs
        self._trigger = trigger
        self._tensors = dict(read_trigger(trigger, specs))

    def delta(self, chunk: Chunk) -> np.ndarray:
        one = self._tensors[chunk.name]
        first, last = chunk.first_row, chunk.first_row + chunk.num_rows
        if isinstance(one, Raw):
            return one.values[chunk.start : chunk.stop].copy()
        if isinstance(one, Factored):
            return one.components.rows(first, last, one.dtype, self._algebra).reshape(-1)
        found = np.zeros((chunk.num_rows, chunk.size // chunk.num_rows), np.float32)
        if isinstance(one, Integers):
            own = slice(*np.searchsorted(one.rows, (first, last)))
            found[one.rows[own] - first] = np.ldexp(one.values[own].astype(np.float64), one.exponent)
        return found.reshape(-1)

    def bits(self, chunk: Chunk) -> tuple[int, int]:
        return 0, 0

    def tell(self) -> dict[str, Any]:
        """See `tell_of`."""
        return tell_of(self._trigger, self._tensors)

    def parts(self, name: str) -> ComponentParts | RowParts | None:
        """See `PartsDecoder`."""
        one = self._tensors[name]
        if one is None:
            return None
        if isinstance(one, Factored):
            found = one.components
            sizes = np.ldexp(found.mantissas.astype(np.float64), found.exponents)
            return ComponentParts((found.left * sizes[:, None]).astype(np.float32), found.right.astype(np.float32))
        if isinstance(one, Raw):
            height = self._specs[name].num_rows
            return RowParts(np.arange(height), one.values.reshape(height, -1).copy())
        return RowParts(
            one.rows.astype(np.int64), np.ldexp(one.values.astype(np.float64), one.exponent).astype(np.float32)
        )
