"""How experts become one unified model plus triggers: one small interface, one file a mode.

A mode turns a fused state and new experts into the next fused state, writing what changed as blobs, and it rebuilds one
tensor of one task's vector from what was written. It streams: a few copies of one tensor are in memory, however many
tasks (`joint`: one a task).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from fusion.blobs import BlobRef, BlobWriter, get_json, put_json
from fusion.cache import NodeCache
from fusion.errors import ConfigError
from fusion.state import FusedState, TaskEntry, TaskRecord
from fusion.tensors import TensorFile, TensorSpec


@dataclass(frozen=True)
class NewExpert:
    """An expert on its way into a state: its weights, and its record, still without trigger."""

    weights: TensorFile
    task: str
    expert_sha256: str
    describe: Mapping[str, Any]
    """`classes`, `templates`, `prototypes`, `archive` of the record to be."""


class Workbench:
    """What a mode works with: the store behind a node cache, the base, and the nonce that its blobs carry."""

    def __init__(self, cache: NodeCache, base: TensorFile, nonce: str) -> None:
        self.cache = cache
        self.base = base
        self.nonce = nonce
        self.written: list[BlobRef] = []
        """Every blob written so far: what a failed or lost publish leaves behind, and may delete."""
        self._records: dict[str, TaskRecord] = {}

    def record(self, entry: TaskEntry) -> TaskRecord:
        if entry.record.key not in self._records:
            self._records[entry.record.key] = TaskRecord.from_json(get_json(self.cache.store, entry.record))
        return self._records[entry.record.key]

    def trigger(self, entry: TaskEntry) -> TensorFile:
        return self.cache.tensors(self.record(entry).trigger)

    def blob(self, specs: Mapping[str, TensorSpec]) -> BlobWriter:
        return BlobWriter(self.cache.store, self.nonce, specs, on_stored=self.written.append)

    def drop_own(self, refs: Iterable[BlobRef | None]) -> None:
        """Remove blobs that this publish itself wrote for a session in between, and that no version will name."""
        for ref in refs:
            if ref in self.written:
                self.written.remove(ref)
                self.cache.store.delete(ref.key)

    def put_record(self, new: NewExpert, trigger: BlobWriter, norm: float, **entry: Any) -> TaskEntry:
        """Store a new expert's record and return its line for the manifest."""
        record = TaskRecord(
            task=new.task, expert_sha256=new.expert_sha256, trigger=trigger.ref, norm=norm, **dict(new.describe)
        )
        ref = put_json(self.cache.store, record.to_json(), nonce=self.nonce)
        self.written.append(ref)
        return TaskEntry(record=ref, expert_sha256=new.expert_sha256, **entry)

    def changed_buffers(self, weights: TensorFile) -> dict[str, TensorSpec]:
        """`buffer/NAME` specs of the buffers in which an expert differs from the base, which gives the dtype."""
        return {
            f"buffer/{name}": self.base.specs[name]
            for name in self.base.buffer_names()
            if not torch.equal(self._buffer(weights, name), self.base.tensor(name))
        }

    def copy_buffers(self, weights: TensorFile, trigger: BlobWriter, specs: Mapping[str, TensorSpec]) -> None:
        for key in specs:
            if key.startswith("buffer/"):
                trigger.write(key, self._buffer(weights, key.removeprefix("buffer/")))

    def _buffer(self, weights: TensorFile, name: str) -> torch.Tensor:
        return weights.tensor(name).to(self.base.tensor(name).dtype)  # an expert in bf16 has its buffers in bf16 too


class Mode(Protocol):
    """One way of fusing."""

    name: str
    needs_archive: bool
    """Whether adding a task re-reads the experts of all the others."""

    def settings(self) -> dict[str, Any]:
        """What a manifest records: `name`, and whatever decides the result."""
        ...

    def fuse(self, bench: Workbench, state: FusedState, new: Sequence[NewExpert]) -> FusedState:
        """One session for each new expert in their order (`joint`: one for all). Writes blobs, commits nothing."""
        ...

    def decouple(self, bench: Workbench, state: FusedState, task: str) -> Iterator[tuple[str, np.ndarray]]:
        """The task vector that the state holds for a task: (name, float32 [N], flat) for every fused tensor."""
        ...


def open_mode(settings: Mapping[str, Any]) -> Mode:
    """The mode that `settings` (of a manifest or a configuration) describes. Raises `ConfigError`."""
    from fusion.modes.iterative import Iterative
    from fusion.modes.joint import Joint
    from fusion.modes.signed import Signed

    name = settings.get("name")
    if name == "iterative":
        return Iterative()
    if name == "joint":
        return Joint()
    if name == "signed":
        return Signed(bits=int(settings.get("bits", 2)))
    raise ConfigError(f"fusion mode {name!r} is unknown: take iterative, joint or signed")
