"""A trigger of components and integers as a blob: how each tensor of a task vector is written, and read again.

Letters: R rows and C columns of a tensor taken as a matrix [first dimension, rest], K components, T fused tensors.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cached_property
from typing import Any

import numpy as np

from fusion.errors import StateDictError
from fusion.factors.algebra import Algebra
from fusion.factors.components import Components, encode
from fusion.factors.symbols import SymbolReader, SymbolWriter
from fusion.tensors import TensorFile, TensorSpec

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


@dataclass(frozen=True)
class Encoded:
    """A tensor as it is kept.

    Attributes:
        step: exponent of what integers are multiples of.
        error: |delta_hat - delta|.
        rows: the rows that are kept, of kind ROWS.
        runs: integers that are entropy-coded together, int32.
        raw: delta, flat, of kind RAW.
    """

    kind: Kind
    step: int = 0
    error: float = 0.0
    components: Components | None = None
    rows: np.ndarray = field(default_factory=lambda: np.empty(0, np.int32))
    runs: Sequence[np.ndarray] = ()
    raw: np.ndarray | None = None

    @property
    def count(self) -> int:
        """Of components, or of rows."""
        return len(self.components.left) if self.components is not None else len(self.rows)


def in_components(delta: np.ndarray, step: float, algebra: Algebra) -> Encoded:
    """A matrix, float32 [R, C], as components of a step > 0: decoded once, to know the error."""
    found = encode(delta, step, algebra)
    if found is None:
        return Encoded(Kind.ZERO, error=_length(delta))
    dtype = found.dtype()
    if dtype is None:
        return Encoded(Kind.RAW, raw=delta.reshape(-1).copy())
    decoded = found.rows(0, len(delta), dtype, algebra)
    return Encoded(
        Kind.COMPONENTS if dtype == np.float32 else Kind.WIDE,
        error=_length(delta - decoded),
        components=found,
        runs=[side for pair in zip(found.left, found.right, strict=True) for side in pair],
    )


def in_integers(kind: Kind, delta: np.ndarray, step: float) -> Encoded:
    """A tensor, float32 [R, C], of kind GRID or ROWS, in multiples of the power of two nearest to the step."""
    exponent = round(math.log2(step))
    # of a token table a few rows moved: float64 copies of the others would be most of what encoding holds in memory
    touched = np.flatnonzero(delta.any(1)) if kind == Kind.ROWS else slice(None)
    own = delta[touched]
    whole = np.rint(np.ldexp(own.astype(np.float64), -exponent))
    if np.abs(whole).max(initial=0) >= 1 << 31 or abs(exponent) > np.iinfo(np.int16).max:
        return Encoded(Kind.RAW, raw=delta.reshape(-1).copy())
    symbols = whole.astype(np.int32)
    error = _length(own - np.ldexp(symbols.astype(np.float64), exponent))
    if kind == Kind.GRID:
        return Encoded(Kind.GRID, step=exponent, error=error, runs=[symbols.reshape(-1)])
    moved = np.flatnonzero(symbols.any(1))
    rows = np.arange(len(delta))[touched][moved]
    return Encoded(Kind.ROWS, step=exponent, error=error, rows=rows, runs=list(symbols[moved]))


@dataclass
class TriggerWriter:
    """A trigger while it is encoded. Lists are in the order of the tensors' names."""

    norm: float
    quality: float
    """The step in units of the root mean square of the matrices' elements."""
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

    def add(self, name: str, found: Encoded) -> None:
        """Add the next tensor."""
        self.kinds.append(found.kind)
        self.counts.append(found.count)
        self.steps.append(found.step)
        self.errors.append(found.error)
        self.rows.append(found.rows)
        self.classes += [self.symbols.add(run) for run in found.runs]
        if found.components is not None:
            self.mantissas.append(found.components.mantissas)
            self.exponents.append(found.components.exponents)
        if found.raw is not None:
            self.raw[name] = found.raw

    @cached_property
    def tensors(self) -> dict[str, np.ndarray]:
        """What is stored, beside buffers, once all is added. Compressed a single time."""
        found: dict[str, np.ndarray] = {
            "quality": np.array([self.quality], np.float32),
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
        """Of `tensors`."""
        dtypes = {"uint8": "U8", "int16": "I16", "int32": "I32", "float32": "F32"}
        return {name: TensorSpec(dtypes[str(v.dtype)], v.shape) for name, v in self.tensors.items()}

    @property
    def num_bytes(self) -> int:
        """Of its tensors, without the file's header and without buffers."""
        return sum(values.nbytes for values in self.tensors.values())


def _length(values: np.ndarray) -> float:
    return math.sqrt(float(np.square(values, dtype=np.float64).sum()))


def _joined(parts: Sequence[np.ndarray], dtype: Any) -> np.ndarray:
    return np.concatenate(parts).astype(dtype) if parts else np.empty(0, dtype)


@dataclass(frozen=True)
class Raw:
    """A tensor of kind RAW: delta, float32, flat."""

    values: np.ndarray


@dataclass(frozen=True)
class Factored:
    """A tensor of kind COMPONENTS or WIDE, and the dtype in which its sums are exact."""

    components: Components
    dtype: np.dtype[Any]


@dataclass(frozen=True)
class Integers:
    """Rows of a tensor, int32 [n, C], times 2^exponent; the others are 0. `rows` is ascending."""

    rows: np.ndarray
    values: np.ndarray
    exponent: int


Tensor = Raw | Factored | Integers | None
"""A fused tensor as it is read; None where the task did not move it."""


def read_trigger(trigger: TensorFile, specs: Mapping[str, TensorSpec]) -> Iterator[tuple[str, Tensor]]:
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
            yield name, Raw(trigger.read(_RAW + name))
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
            yield name, Factored(found, np.dtype(np.float32 if kind == Kind.COMPONENTS else np.float64))
        elif kind == Kind.GRID:
            yield name, Integers(np.arange(height), runs(spec.elements).reshape(height, width), step)
        elif kind == Kind.ROWS:
            values = [runs(width) for _ in range(count)]
            yield name, Integers(rows[row : row + count], np.array(values, np.int32).reshape(count, width), step)
            row += count
        else:
            yield name, None


def tell_of(trigger: TensorFile, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """What a trigger tells of itself, given what `read_trigger` read of it.

    `quality`: at which it was encoded; `tensors`: how many of each kind; `components`: of all matrices; `largest_sum`:
    of the terms' magnitudes of any element, in units of the smallest power of two, by kind: below 2^24 and 2^53;
    `error`: |delta_hat - delta| over all tensors, as the encoder recorded it.
    """
    kinds = [Kind(kind).name.lower() for kind in trigger.read("kind").tolist()]
    sums: dict[str, float] = {}
    components = 0
    for kind, tensor in zip(kinds, tensors.values(), strict=True):
        if isinstance(tensor, Factored):
            components += len(tensor.components.left)
            sums[kind] = max(sums.get(kind, 0.0), tensor.components.largest_sum())
    return {
        "quality": float(trigger.read("quality")[0]) if "quality" in trigger.specs else None,
        "tensors": {kind: kinds.count(kind) for kind in sorted(set(kinds))},
        "components": components,
        "largest_sum": sums,
        "error": _length(trigger.read("error")),
    }
