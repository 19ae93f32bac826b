"""What a mode is: one way to turn experts into triggers and what the triggers share, declared in one class.

A mode turns a fused state and new experts into the next fused state, writing what changed as blobs, and it rebuilds
any piece of one task's vector from what was written. It streams: a few chunks are in memory, however many tasks there
are.

Other code learns about a mode from its class (its options, and how it is described to people) and from the states that
it makes (what is shared, and which task needs it). Nothing outside this folder names a mode.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np

from fusion.chunks import Chunk
from fusion.modes.workbench import NewExpert, Workbench
from fusion.options import Options
from fusion.versions.state import FusedState, TaskRecord


class Decoder(Protocol):
    """One task of a state, decoupled piece by piece. Safe to share between threads."""

    def delta(self, chunk: Chunk) -> np.ndarray:
        """delta_hat over a chunk, float32 [N], a new array."""
        ...

    def bits(self, chunk: Chunk) -> tuple[int, int]:
        """How many bits of the chunk's plane 0 are 1: as written, and as they count now. (0, 0) without planes."""
        ...


@dataclass(frozen=True)
class ComponentParts:
    """delta = u^T v of a matrix.

    Attributes:
        u: float32 [K, R], with the components' sizes in it.
        v: float32 [K, C].
    """

    u: np.ndarray
    v: np.ndarray


@dataclass(frozen=True)
class RowParts:
    """Rows of a tensor's change; those that are not named are 0.

    Attributes:
        rows: ascending, int64 [n].
        values: float32 [n, C].
    """

    rows: np.ndarray
    values: np.ndarray


@runtime_checkable
class PartsDecoder(Decoder, Protocol):
    """A decoder that also gives a tensor's change in few numbers, so that it can be applied without being built."""

    def parts(self, name: str) -> ComponentParts | RowParts | None:
        """None for no change."""
        ...


@runtime_checkable
class TellingDecoder(Decoder, Protocol):
    """A decoder that also tells how its trigger keeps the task."""

    def tell(self) -> dict[str, Any]:
        """Numbers and texts by name, for reports."""
        ...


@dataclass(frozen=True)
class Mode(Options, ABC):
    """One way of fusing. The fields of a subclass are its options, each with a default and a text.

    A mode is a frozen dataclass in a file of its own in this folder, decorated with `register`.
    """

    name: ClassVar[str]
    """Its key in configurations, manifests and reports."""
    needs_archive: ClassVar[bool] = False
    """Whether adding a task reads the experts of all other tasks again."""
    note: ClassVar[str | None] = None
    """What readers of its figures should also know."""
    traces: ClassVar[str | None] = None
    """What shared blobs keep of a removed task, to end "What is left of its training: …". None: nothing."""

    @classmethod
    def variants(cls) -> Mapping[str, Mapping[str, Any]]:
        """Settings that a comparison shows by default, by row. Unless overridden: one row, all options at default."""
        return {cls.name: {}}

    @classmethod
    def more_variants(cls) -> Mapping[str, Mapping[str, Any]]:
        """Further settings, which a comparison shows only on request."""
        return {}

    def settings(self) -> dict[str, Any]:
        """What a manifest records: `name`, and every option that is not at its default."""
        values = {field.name: (getattr(self, field.name), field.default) for field in fields(self)}
        return {"name": self.name, **{key: value for key, (value, default) in values.items() if value != default}}

    def title(self) -> str:
        """The mode and its options as the title of a row, such as `signed, 2 bits`."""
        options = (f"{key} {value}" for key, value in self.settings().items() if key != "name")
        return ", ".join([self.name, *options])

    @abstractmethod
    def fuse(self, bench: Workbench, state: FusedState, new: Sequence[NewExpert]) -> FusedState:
        """One session per new expert, in their order, or one for all of them. Writes blobs, commits nothing.

        The returned state itself says what is shared, which of it each task is decoded with
        (`TaskEntry.decoded_with`) and which of it the next fuse reads (`FusedState.reads`): removing a task, verifying
        and gc need no help from the mode.
        """

    @abstractmethod
    def rebuild(self, bench: Workbench, experts: Sequence[NewExpert]) -> FusedState:
        """A state of exactly these experts: the best that the mode can do with all of them available."""

    @abstractmethod
    def decoder(self, bench: Workbench, state: FusedState, task: str) -> Decoder:
        """What rebuilds a task's vector from the state."""

    def task_bytes(self, record: TaskRecord) -> int:
        """Bytes stored for one task alone."""
        return record.trigger.bytes if record.trigger else 0

    def shared_bytes(self, state: FusedState) -> int:
        """Bytes stored once for all tasks, not counting the base."""
        return sum(ref.bytes for ref in state.shared.values())
