"""What a mode is: one way to turn experts into triggers and what these share, declared in one class.

A mode turns a fused state and new experts into the next fused state, writing what changed as blobs, and it rebuilds
any piece of one task's vector from what was written. It streams: a few chunks are in memory, however many tasks.

Everything that others have to know of a mode stands in its class, its options and how people are told of it, or in the
states that it makes: what is shared, and who needs it. Nothing outside this folder names a mode.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Protocol

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
        """Bits that are 1 in the chunk's plane 0: as it was written, and as it counts now. (0, 0) without planes."""
        ...


@dataclass(frozen=True)
class Mode(Options, ABC):
    """One way of fusing. The fields of a subclass are its options, each with a default and a text.

    A mode is a frozen dataclass in a file of its own in this folder, decorated with `register`.
    """

    name: ClassVar[str]
    """Its key in configurations, manifests and reports."""
    needs_archive: ClassVar[bool] = False
    """Whether adding a task re-reads the experts of all the others."""
    note: ClassVar[str | None] = None
    """What a reader of its figures should know beside them."""
    traces: ClassVar[str | None] = None
    """What is left of a removed task in what the others share, as the end of "Of its training …"."""

    @classmethod
    def variants(cls) -> Mapping[str, Mapping[str, Any]]:
        """Its settings that a comparison shows unasked, by the name of the row. Default: the mode as it comes."""
        return {cls.name: {}}

    @classmethod
    def more_variants(cls) -> Mapping[str, Mapping[str, Any]]:
        """Settings that a comparison knows too, and shows when asked."""
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

        The state that it returns says by itself what is shared, which of it each task is decoded with
        (`TaskEntry.decoded_with`) and which of it the next fuse reads (`FusedState.reads`): so what a removed task
        leaves behind, what has to be verified and what gc may take need no mode.
        """

    @abstractmethod
    def rebuild(self, bench: Workbench, experts: Sequence[NewExpert]) -> FusedState:
        """A state of these experts and nothing else, the best that the mode makes of having them all at hand."""

    @abstractmethod
    def decoder(self, bench: Workbench, state: FusedState, task: str) -> Decoder:
        """Rebuilds what the state holds for a task."""

    def task_bytes(self, record: TaskRecord) -> int:
        """Bytes that a task costs beside what all share."""
        return record.trigger.bytes

    def shared_bytes(self, state: FusedState) -> int:
        """Bytes that are stored once for all tasks, beside the base."""
        return sum(ref.bytes for ref in state.shared.values())
