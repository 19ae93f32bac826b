"""Mode `lowrank`: each task is a few quantised components per matrix. Tasks share nothing.

Fine-tuning moves a matrix along few directions, and these carry the answer. So a task vector's matrices are kept as
components with integer factors, everything else as integers, all at quantiser steps that follow from one number,
Delta = quality x the root mean square of the matrices' elements. A trigger is one small blob that decodes to the same
bits on every machine; adding or removing a task touches no other.

Letters: R rows and C columns of a tensor taken as a matrix [first dimension, rest], K components, T fused tensors.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from functools import cached_property
from typing import Annotated, Any

import numpy as np
from annotated_types import Ge, Gt

from fusion.chunks import Chunk
from fusion.errors import ConfigError, StateDictError
from fusion.factors.algebra import Algebra, open_algebra
from fusion.factors.components import Components, encode
from fusion.factors.symbols import SymbolReader, SymbolWriter
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
_BISECTIONS = 8
_COARSEST = 64.0
"""How much coarser than `quality` steps may become to fit `max_bytes`."""
_STREAM = "stream/"
_RAW = "raw/"


class Kind(IntEnum):
    """How a tensor is kept."""

    ZERO = 0
    """The task did not move it."""
    COMPONENTS = 1
    """Components, whose sums are exact in float32."""
    WIDE = 2
    """Components, whose sums are exact in float64 only."""
    GRID = 3
    """Integers times a power of two."""
    ROWS = 4
    """The rows that moved, likewise."""
    RAW = 5
    """As it is, in float32: what no integers of 32 bits and no exact sum can say."""


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

    def _encode(self, bench: Workbench, vector: TaskVector, algebra: Algebra) -> _Trigger:
        measured = [_measure(bench, vector, name) for name in bench.specs]
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


@dataclass
class _Trigger:
    """A trigger while it is encoded. Lists are in the order of the tensors' names."""

    norm: float
    kinds: list[int] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)
    mantissas: list[np.ndarray] = field(default_factory=list)
    exponents: list[np.ndarray] = field(default_factory=list)
    rows: list[np.ndarray] = field(default_factory=list)
    classes: list[int] = field(default_factory=list)
    raw: dict[str, np.ndarray] = field(default_factory=dict)
    symbols: SymbolWriter = field(default_factory=SymbolWriter)

    def note(self, kind: Kind, *, count: int = 0, step: int = 0, error: float = 0.0) -> None:
        self.kinds.append(kind)
        self.counts.append(count)
        self.steps.append(step)
        self.errors.append(error)

    def run(self, values: np.ndarray) -> None:
        self.classes.append(self.symbols.add(values))

    @cached_property
    def tensors(self) -> dict[str, np.ndarray]:
        """What is stored, beside buffers, once all is added. Compressed a single time."""
        found: dict[str, np.ndarray] = {
            "kind": np.array(self.kinds, np.uint8),
            "count": np.array(self.counts, np.int32),
            "step": np.array(self.steps, np.int16),
            "error": np.array(self.errors, np.float32),
            "mantissa": _joined(self.mantissas, np.uint8),
            "exponent": _joined(self.exponents, np.int16),
            "row": _joined(self.rows, np.int32),
            "class": np.array(self.classes, np.uint8),
        }
        streams = {f"{_STREAM}{kind}": stream for kind, stream in self.symbols.streams().items()}
        return found | streams | {_RAW + name: values for name, values in self.raw.items()}

    def layout(self) -> dict[str, TensorSpec]:
        dtypes = {"uint8": "U8", "int16": "I16", "int32": "I32", "float32": "F32"}
        return {name: TensorSpec(dtypes[str(v.dtype)], v.shape) for name, v in self.tensors.items()}

    @property
    def num_bytes(self) -> int:
        """Of its tensors, without the file's header and without buffers."""
        return sum(values.nbytes for values in self.tensors.values())


def _measure(bench: Workbench, vector: TaskVector, name: str) -> _Measured:
    delta = _read(bench, vector, name)
    size, spec = delta.size, bench.specs[name]
    sums = np.abs(delta, dtype=np.float64).sum()
    check_finite(np.atleast_1d(sums), vector, name)
    squares = float(np.square(delta, dtype=np.float64).sum())
    kind, factor = Kind.GRID, _STEP_OF_VECTORS
    if not sums:
        kind = Kind.ZERO
    elif len(spec.shape) > 2 and spec.shape[1] == 1:
        factor = _STEP_OF_DEPTHWISE
    elif len(spec.shape) > 1:
        moved = int((delta != 0).any(1).sum())
        kind, factor = (Kind.ROWS, _STEP_OF_ROWS) if moved <= len(delta) // _FEW_ROWS else (Kind.COMPONENTS, 0.0)
    return _Measured(name, kind, factor, squares, size, float(sums) / max(size, 1))


def _encode(
    bench: Workbench, vector: TaskVector, measured: Sequence[_Measured], quality: float, algebra: Algebra
) -> _Trigger:
    matrices = [one for one in measured if one.kind == Kind.COMPONENTS] or measured
    mean = sum(one.squares for one in matrices) / max(sum(one.elements for one in matrices), 1)
    delta_step = quality * math.sqrt(mean)
    trigger = _Trigger(sum(one.norm for one in measured))
    for one in measured:
        if one.kind == Kind.ZERO:
            trigger.note(Kind.ZERO)
            continue
        delta = _read(bench, vector, one.name)
        if one.kind == Kind.COMPONENTS:
            _add_components(trigger, one.name, delta, delta_step, algebra)
        else:
            _add_integers(trigger, one, delta, one.factor * delta_step)
    return trigger


def _add_components(trigger: _Trigger, name: str, delta: np.ndarray, step: float, algebra: Algebra) -> None:
    found = encode(delta, step, algebra)
    if found is None:
        trigger.note(Kind.ZERO, error=_length(delta))
        return
    dtype = found.dtype()
    if dtype is None:
        _add_raw(trigger, name, delta)
        return
    decoded = found.rows(0, len(delta), dtype, algebra)
    kind = Kind.COMPONENTS if dtype == np.float32 else Kind.WIDE
    trigger.note(kind, count=len(found.left), error=_length(delta - decoded))
    trigger.mantissas.append(found.mantissas)
    trigger.exponents.append(found.exponents)
    for left, right in zip(found.left, found.right, strict=True):
        trigger.run(left)
        trigger.run(right)


def _add_integers(trigger: _Trigger, one: _Measured, delta: np.ndarray, step: float) -> None:
    exponent = round(math.log2(step))
    whole = np.rint(np.ldexp(delta.astype(np.float64), -exponent))
    if np.abs(whole).max(initial=0) >= 1 << 31 or abs(exponent) > np.iinfo(np.int16).max:
        _add_raw(trigger, one.name, delta)
        return
    symbols = whole.astype(np.int32)
    error = _length(delta - np.ldexp(symbols.astype(np.float64), exponent))
    if one.kind == Kind.GRID:
        trigger.note(Kind.GRID, step=exponent, error=error)
        trigger.run(symbols.reshape(-1))
        return
    moved = np.flatnonzero(symbols.any(1))
    trigger.note(Kind.ROWS, count=len(moved), step=exponent, error=error)
    trigger.rows.append(moved)
    for row in symbols[moved]:
        trigger.run(row)


def _add_raw(trigger: _Trigger, name: str, delta: np.ndarray) -> None:
    trigger.note(Kind.RAW)
    trigger.raw[name] = delta.reshape(-1).copy()


def _read(bench: Workbench, vector: TaskVector, name: str) -> np.ndarray:
    """A whole tensor of a task vector as a matrix [R, C], in the thread's buffer."""
    spec = bench.specs[name]
    whole = Chunk(name, 0, spec.elements, 0, spec.num_rows)
    return vector.delta(whole, bench.buffers).reshape(spec.num_rows, -1)


def _length(values: np.ndarray) -> float:
    return math.sqrt(float(np.square(values, dtype=np.float64).sum()))


def _joined(parts: Sequence[np.ndarray], dtype: Any) -> np.ndarray:
    return np.concatenate(parts).astype(dtype) if parts else np.empty(0, dtype)


class LowRankDecoder:
    """One task's trigger, its symbols expanded, decoded piece by piece."""

    def __init__(self, trigger: TensorFile, specs: Mapping[str, TensorSpec], algebra: Algebra) -> None:
        self._algebra = algebra
        self._specs = specs
        self._tensors = dict(_tensors(trigger, specs))

    def delta(self, chunk: Chunk) -> np.ndarray:
        one = self._tensors[chunk.name]
        first, last = chunk.first_row, chunk.first_row + chunk.num_rows
        if isinstance(one, _Raw):
            return one.values[chunk.start : chunk.stop].copy()
        if isinstance(one, _Factored):
            return one.components.rows(first, last, one.dtype, self._algebra).reshape(-1)
        found = np.zeros((chunk.num_rows, chunk.size // chunk.num_rows), np.float32)
        if isinstance(one, _Integers):
            own = slice(*np.searchsorted(one.rows, (first, last)))
            found[one.rows[own] - first] = np.ldexp(one.values[own].astype(np.float64), one.exponent)
        return found.reshape(-1)

    def bits(self, chunk: Chunk) -> tuple[int, int]:
        return 0, 0

    def parts(self, name: str) -> ComponentParts | RowParts | None:
        """See `PartsDecoder`."""
        one = self._tensors[name]
        if one is None:
            return None
        if isinstance(one, _Factored):
            found = one.components
            sizes = np.ldexp(found.mantissas.astype(np.float64), found.exponents)
            return ComponentParts((found.left * sizes[:, None]).astype(np.float32), found.right.astype(np.float32))
        if isinstance(one, _Raw):
            height = self._specs[name].num_rows
            return RowParts(np.arange(height), one.values.reshape(height, -1).copy())
        return RowParts(
            one.rows.astype(np.int64), np.ldexp(one.values.astype(np.float64), one.exponent).astype(np.float32)
        )


@dataclass(frozen=True)
class _Raw:
    values: np.ndarray


@dataclass(frozen=True)
class _Factored:
    components: Components
    dtype: np.dtype[Any]


@dataclass(frozen=True)
class _Integers:
    """Rows of a tensor, int32 [n, C], times 2^exponent; the others are 0. `rows` is ascending."""

    rows: np.ndarray
    values: np.ndarray
    exponent: int


def _tensors(
    trigger: TensorFile, specs: Mapping[str, TensorSpec]
) -> Iterator[tuple[str, _Raw | _Factored | _Integers | None]]:
    """Every fused tensor of a trigger. Raises `StateDictError` for one that does not fit the base."""
    kinds, counts, steps = (trigger.read(name) for name in ("kind", "count", "step"))
    if len(kinds) != len(specs):
        raise StateDictError(f"{trigger.label}: describes {len(kinds)} tensors, the base has {len(specs)}")
    streams = {int(n.removeprefix(_STREAM)): trigger.read(n) for n in trigger.specs if n.startswith(_STREAM)}
    symbols = SymbolReader(streams, trigger.label)
    classes = iter(trigger.read("class").tolist())
    mantissas, exponents, rows = (trigger.read(name).astype(np.int32) for name in ("mantissa", "exponent", "row"))
    component = row = 0

    def runs(size: int) -> np.ndarray:
        return symbols.take(next(classes, 0), size)

    for (name, spec), kind, count, step in zip(
        specs.items(), kinds.tolist(), counts.tolist(), steps.tolist(), strict=True
    ):
        height = spec.num_rows
        width = spec.elements // height
        if kind == Kind.RAW:
            yield name, _Raw(trigger.read(_RAW + name))
        elif kind in (Kind.COMPONENTS, Kind.WIDE):
            sides = [(runs(height), runs(width)) for _ in range(count)]
            own = slice(component, component + count)
            component += count
            found = Components(
                np.stack([left for left, _ in sides]),
                np.stack([right for _, right in sides]),
                mantissas[own],
                exponents[own],
            )
            yield name, _Factored(found, np.dtype(np.float32 if kind == Kind.COMPONENTS else np.float64))
        elif kind == Kind.GRID:
            yield name, _Integers(np.arange(height), runs(spec.elements).reshape(height, width), step)
        elif kind == Kind.ROWS:
            values = [runs(width) for _ in range(count)]
            yield name, _Integers(rows[row : row + count], np.array(values, np.int32).reshape(count, width), step)
            row += count
        else:
            yield name, None
