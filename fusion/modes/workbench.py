"""The workbench: what every mode works with, so that a mode's own file holds only the mode."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from functools import cache, cached_property
from typing import Any, TypeVar, overload

import numpy as np
from threadpoolctl import ThreadpoolController

from fusion.chunks import Buffers, Chunk, chunks_of, map_chunks, map_in
from fusion.errors import ConfigError
from fusion.kernels import available_cores, open_kernels
from fusion.planes import plane_bytes
from fusion.store.blobs import BlobRef, BlobWriter, get_json, put_json
from fusion.store.node_cache import NodeCache
from fusion.task_vectors import TaskVector, open_archive
from fusion.tensors import TensorFile, TensorSpec
from fusion.versions.state import TaskEntry, TaskRecord

_IO_THREADS = 16
_OF_A_FUSE = {"task", "expert_sha256", "trigger", "norm"}
"""What `Workbench.put_record` says of an expert that is fused; the rest of its record describes the task."""

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class NewExpert:
    """An expert to be fused: its task vector, and what its record will say beside the trigger."""

    vector: TaskVector
    task: str
    expert_sha256: str
    describe: Mapping[str, Any]
    """The other fields of its record (`TaskRecord`)."""


class Workbench:
    """The store behind a node cache, the base, the nonce that new blobs carry, and the kernels.

    Args:
        cache: of the store.
        base: theta_0.
        nonce: of the publisher's attempt.
        device: the torch device that does the arithmetic.
        threads: how many chunks are processed at once; None: one per core that this process may use.
    """

    def __init__(
        self, cache: NodeCache, base: TensorFile, nonce: str, *, device: str = "cpu", threads: int | None = None
    ) -> None:
        self.cache = cache
        self.base = base
        self.nonce = nonce
        self.device = device
        self.kernels = open_kernels(device)
        self.threads = threads or available_cores()
        self.buffers = Buffers()
        self.written: list[BlobRef] = []
        """Every blob written so far: what a failed or lost publish leaves behind, and may delete."""
        self.rounding: dict[str, float] = {}
        """Relative error of what was stored in fewer than 32 bits: of `unified`, and of a task's `archive`."""
        self.pass_seconds = 0.0
        """Time spent in passes over the elements: reading them, the arithmetic, writing them."""
        self._records: dict[str, TaskRecord] = {}
        self._triggers: dict[str, TensorFile] = {}

    @cached_property
    def specs(self) -> dict[str, TensorSpec]:
        """The tensors that a task vector spans."""
        return {name: self.base.specs[name] for name in self.base.fused_names()}

    @cached_property
    def chunks(self) -> list[Chunk]:
        return chunks_of(self.specs)

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        """Threads that live, and keep their buffers, from one pass to the next."""
        return ThreadPoolExecutor(self.threads, thread_name_prefix="chunk")

    @overload
    def map(self, work: Callable[[Chunk], Result]) -> list[Result]: ...
    @overload
    def map(self, work: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]: ...
    def map(self, work: Callable[[Any], Result], items: Sequence[Any] | None = None) -> list[Result]:
        """Run `work` on every item (default: every chunk of the model) in parallel; results in order."""
        start = time.perf_counter()
        try:
            with _blas().limit(limits=1, user_api="blas"):  # else each of our threads would start as many of BLAS's own
                return map_in(self._pool, work, self.chunks if items is None else items)
        finally:
            self.pass_seconds += time.perf_counter() - start

    def plane_specs(self, num_planes: int) -> dict[str, TensorSpec]:
        """Layout of the planes of a trigger."""
        return {
            f"plane/{k}/{name}": TensorSpec("U8", (plane_bytes(spec.elements),))
            for name, spec in self.specs.items()
            for k in range(num_planes)
        }

    def read_planes(self, triggers: Sequence[TensorFile], chunk: Chunk) -> np.ndarray:
        """A chunk's part of plane 0 of every trigger, uint8 [T, B], in one of the thread's buffers."""
        planes_TB = self.buffers.take("planes", len(triggers) * chunk.num_bytes, np.uint8)
        planes_TB = planes_TB.reshape(len(triggers), chunk.num_bytes)
        for plane_B, trigger in zip(planes_TB, triggers, strict=True):
            trigger.read_into(f"plane/0/{chunk.name}", chunk.first_byte, plane_B)
        return planes_TB

    def record(self, entry: TaskEntry) -> TaskRecord:
        if entry.record.key not in self._records:
            self._records[entry.record.key] = TaskRecord.from_json(get_json(self.cache.store, entry.record))
        return self._records[entry.record.key]

    def trigger(self, entry: TaskEntry) -> TensorFile:
        """A task's trigger, opened once for all sessions of a call."""
        ref = self.record(entry).trigger
        assert ref is not None, "modes see only tasks that have an expert"
        if ref.key not in self._triggers:
            self._triggers[ref.key] = self.cache.tensors(ref)
        return self._triggers[ref.key]

    def triggers(self, entries: Sequence[TaskEntry]) -> list[TensorFile]:
        """The triggers of many tasks, fetched and verified in parallel. Their records are read on the way."""
        _allow_open_files(len(entries))
        return map_chunks(self.trigger, entries, threads=_IO_THREADS)

    def archived(self, task: str, entry: TaskEntry) -> NewExpert:
        """A task's original task vector, from its archive. Raises `ConfigError` if it was not archived."""
        record = self.record(entry)
        if record.archive is None:
            raise ConfigError(
                f"the expert of task {task!r} was not archived, and every original expert is needed: fuse it again "
                f"with --replace --archive, or start a new store with archive_experts: true from the first task on"
            )
        describe = {one.name: getattr(record, one.name) for one in fields(record) if one.name not in _OF_A_FUSE}
        vector = open_archive(self.base, self.cache.tensors(record.archive))
        return NewExpert(vector, task, record.expert_sha256, describe)

    def note_rounding(self, what: str, squares_2: np.ndarray) -> None:
        """Record the relative error caused by rounding, for the report."""
        if squares_2[1] > 0:
            self.rounding[what] = float(np.sqrt(squares_2[0] / squares_2[1]))

    @contextmanager
    def blobs(self, *layouts: Mapping[str, TensorSpec]) -> Iterator[list[BlobWriter]]:
        """Writers of new blobs, which are all stored when the block ends without an error."""
        writers: list[BlobWriter] = []
        _allow_open_files(len(layouts))
        try:
            for layout in layouts:
                writers.append(BlobWriter(self.cache.store, self.nonce, layout))
            yield writers
            self.written += map_chunks(BlobWriter.store, writers, threads=_IO_THREADS)
        finally:
            for writer in writers:
                writer.discard()

    def drop_own(self, refs: Iterable[BlobRef], *, kept: Collection[BlobRef]) -> None:
        """Delete blobs that this publish wrote for an intermediate session and that no version will name.

        `kept` are those of the next session: within one publish, equal bytes are one object.
        """
        dropped = {ref for ref in refs if ref in self.written and ref not in kept}
        self.written = [ref for ref in self.written if ref not in dropped]
        for ref in dropped:
            self.cache.store.delete(ref.key)

    def put_record(self, new: NewExpert, trigger: BlobRef, norm: float, **entry: Any) -> TaskEntry:
        """Store a new expert's record and return its line for the manifest."""
        record = TaskRecord(
            task=new.task, expert_sha256=new.expert_sha256, trigger=trigger, norm=norm, **dict(new.describe)
        )
        return self.put(record, **entry)

    def put(self, record: TaskRecord, **entry: Any) -> TaskEntry:
        """Store a record and return its line for the manifest."""
        ref = put_json(self.cache.store, record.to_json(), nonce=self.nonce)
        self.written.append(ref)
        self._records[ref.key] = record
        return TaskEntry(record=ref, expert_sha256=record.expert_sha256, **entry)


@cache
def _blas() -> ThreadpoolController:
    """The BLAS libraries of this process, looked for once."""
    return ThreadpoolController()


def copy_buffers(vector: TaskVector, trigger: BlobWriter) -> None:
    """Write the buffers in which an expert differs from the base into its trigger."""
    for key in vector.changed_buffers():
        trigger.write(key, vector.buffer(key))


def _allow_open_files(count: int) -> None:
    """Raise this process's limit on open files, which a thousand triggers exceed. The hard limit stays."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * count + 512
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(ValueError, OSError):
            allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
            resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
