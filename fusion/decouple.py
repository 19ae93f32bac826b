"""Decoupling: a version's expert as a state dict again, theta_0 + delta_hat, piece by piece."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fusion.chunks import Chunk
from fusion.errors import ConfigError
from fusion.modes import Decoder, Workbench, open_mode
from fusion.store.blobs import get_json, new_nonce
from fusion.store.node_cache import NodeCache
from fusion.task_vectors import BUFFER
from fusion.tensors import TensorFile, TensorSpec, TensorWriter, is_fused
from fusion.versions.manifest import Manifest, unknown_task
from fusion.versions.state import TaskEntry, TaskRecord

if TYPE_CHECKING:
    import torch


class DecoupledExpert:
    """One task of a version, ready to be rebuilt. Raises `UnknownTaskError`.

    Args:
        cache: of the store.
        manifest: the version.
        task: whose expert.
    """

    def __init__(self, cache: NodeCache, manifest: Manifest, task: str) -> None:
        entry = find_entry(manifest, task)
        if not entry.has_expert:
            raise ConfigError(
                f"task {task!r} has no expert to rebuild: it was published with training method 'head', so the frozen "
                "base and the task's evidence answer it. Train it with method 'full' to get one"
            )
        self.bench = Workbench(cache, cache.tensors(manifest.base.weights), new_nonce())
        self.trigger = self.bench.trigger(entry)
        self.decoder: Decoder = open_mode(manifest.mode).decoder(self.bench, manifest.state, task)

    def layout(self) -> dict[str, TensorSpec]:
        """The expert's tensors: fused ones in float32, buffers in the base's dtype."""
        return {
            name: TensorSpec("F32", spec.shape) if is_fused(name, spec) else spec
            for name, spec in self.bench.base.specs.items()
        }

    def chunk(self, chunk: Chunk) -> np.ndarray:
        """theta_0 + delta_hat over a chunk, float32 [N]."""
        base_N = self.bench.buffers.take("base", chunk.size)
        self.bench.base.read_float32(chunk.name, chunk.start, base_N)
        delta_N = self.decoder.delta(chunk)
        return np.add(base_N, delta_N, out=delta_N)

    def write(self, path: Path) -> None:
        """Write the state dict as safetensors. Only a few chunks are in memory."""
        writer = TensorWriter(path, self.layout())
        try:
            for name in self.bench.base.buffer_names():
                file, key = self._buffer(name)
                writer.write(name, file.array(key))
            self.bench.map(lambda chunk: writer.write(chunk.name, self.chunk(chunk), start=chunk.start))
        except BaseException:
            writer.abandon()
            raise
        writer.finish()

    def tensors(self, wanted: Callable[[str], bool] = lambda _: True) -> Iterator[tuple[str, torch.Tensor]]:
        """The state dict as torch tensors, one at a time; of the names that are wanted."""
        import torch

        for name in filter(wanted, self.bench.base.buffer_names()):
            file, key = self._buffer(name)
            yield name, file.tensor(key)
        chunks: dict[str, list[Chunk]] = {name: [] for name in self.bench.specs}
        for chunk in self.bench.chunks:
            chunks[chunk.name].append(chunk)
        for name in filter(wanted, self.bench.specs):
            spec = self.bench.specs[name]
            expert_N = np.empty(spec.elements, np.float32)

            def fill(chunk: Chunk, expert_N: np.ndarray = expert_N) -> None:
                expert_N[chunk.start : chunk.stop] = self.chunk(chunk)

            if len(chunks[name]) == 1:  # handing it to another thread would take longer
                fill(chunks[name][0])
            else:
                self.bench.map(fill, chunks[name])
            yield name, torch.from_numpy(expert_N).reshape(spec.shape)

    def _buffer(self, name: str) -> tuple[TensorFile, str]:
        """The file and key of a buffer: the trigger's, where the expert's differed from the base's."""
        key = BUFFER + name
        return (self.trigger, key) if key in self.trigger else (self.bench.base, name)


def decoupled_tensors(
    cache: NodeCache, manifest: Manifest, task: str, wanted: Callable[[str], bool] = lambda _: True
) -> Iterator[tuple[str, torch.Tensor]]:
    """The decoupled expert theta_0 + delta_hat_i, tensor by tensor: fused ones in float32, buffers as the expert's.

    Args:
        wanted: of a tensor's name, whether it is needed.
    Raises: `UnknownTaskError`.
    """
    return DecoupledExpert(cache, manifest, task).tensors(wanted)


def read_record(cache: NodeCache, manifest: Manifest, task: str) -> TaskRecord:
    """A task's record in a version. Raises `UnknownTaskError`."""
    return TaskRecord.from_json(get_json(cache.store, find_entry(manifest, task).record))


def find_entry(manifest: Manifest, task: str) -> TaskEntry:
    """A task's line in a version. Raises `UnknownTaskError`."""
    if task not in manifest.state.tasks:
        raise unknown_task(task, manifest.version, manifest.state.tasks)
    return manifest.state.tasks[task]
