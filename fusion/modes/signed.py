"""Mode `signed`: each task keeps its own signs, and its magnitudes rounded to a few levels.

What the tasks share is a magnitude profile g, an immutable fp16 blob: delta_hat = +-mu_r g q, where mu_r is the task's
scale of row r (one row for vectors and scalars) and q is 1 with one bit, else one of 2^(bits-1) levels. A row that the
task never moved comes back as exactly 0. A trigger names the profile that it was encoded against and is decoded with
no other, so no later publish changes what an old trigger says (a one-bit trigger may be re-pointed to a newer profile:
its signs are valid with any).

Suffixes: N elements of a chunk, S rows of it, K planes, Q levels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import numpy as np
from annotated_types import Ge, Le

from fusion.chunks import CHUNK_ELEMENTS, Chunk
from fusion.kernels import LEVEL_BINS, Kernels
from fusion.modes.mode import Mode
from fusion.modes.registry import register
from fusion.modes.workbench import NewExpert, Workbench, copy_buffers
from fusion.store.blobs import BlobRef, BlobWriter
from fusion.task_vectors import TaskVector, check_finite
from fusion.tensors import TensorFile, TensorSpec
from fusion.versions.state import FusedState, TaskEntry

PROFILE_OPENS_AT = (1, 2, 4, 8)
"""Numbers of tasks at which a publish opens a new profile: at most four profiles, each 2 bytes per parameter."""

_PROFILE = "profile/"
_FP16_MAX = 65504.0
_LLOYD_ROUNDS = 100
_BATCH_ELEMENTS = 8 * CHUNK_ELEMENTS
_SAMPLED_ABOVE, _SAMPLE_STEP = 1 << 16, 5
"""Levels of a tensor with more elements are fitted on every fifth: thousands of ratios determine them to a fraction
of a percent."""


def fit_levels(histogram_P2: np.ndarray, num_levels: int) -> np.ndarray:
    """Lloyd's levels for |delta| / (mu g), weighted by (mu g)^2: what minimises the squared error of delta_hat.

    Runs on a histogram (`Kernels.level_histogram`): a level is a weighted mean of bin means, so only the borders of
    cells are rounded. Deterministic.

    Returns: float32 [Q], ascending, >= 0.
    """
    from fusion.kernels import compiled

    return compiled.fit_levels(histogram_P2, num_levels, _LLOYD_ROUNDS).astype(np.float32)


def row_means(kernels: Kernels, values_N: np.ndarray, starts_S: np.ndarray) -> np.ndarray:
    """Mean |value| of each row, float32 [S], summed in float64; NaN or infinite where a value is."""
    return (kernels.sum_abs(values_N, starts_S) / np.maximum(np.diff(starts_S), 1)).astype(np.float32)


class OpenProfile:
    """The profile of one chunk while task vectors are added: g_rj = (1 + sum_i |d_ij| / nu_ir) / (1 + c_r).

    nu_ir is the mean |d_i| over row r and c_r counts the tasks with nu_ir > 0. The 1 is a pseudo-task: g is never 0,
    and is 1 where no task moved.
    """

    def __init__(self, kernels: Kernels, starts_S: np.ndarray) -> None:
        self._kernels = kernels
        self._starts_S = starts_S
        self._sum_N = np.ones(int(starts_S[-1]), np.float32)
        self._count_S = np.ones(starts_S.size - 1, np.float32)

    def add(self, delta_N: np.ndarray) -> np.ndarray:
        """Add a task vector, float32 [N]. Returns its nu, float32 [S]."""
        means_S = row_means(self._kernels, delta_N, self._starts_S)
        self._kernels.add_to_profile(self._sum_N, delta_N, means_S, self._starts_S)
        self._count_S += means_S > 0
        return means_S

    def close(self) -> np.ndarray:
        """g, float16 [N]."""
        counts_N = np.repeat(self._count_S, np.diff(self._starts_S))
        return np.minimum(self._sum_N / counts_N, _FP16_MAX).astype(np.float16)


@register
@dataclass(frozen=True)
class Signed(Mode):
    """Mode `signed` over whole states."""

    name = "signed"
    traces = "the shared profile keeps its share of mean magnitudes, never its signs"

    bits: Annotated[int, Ge(1), Le(4)] = 2
    """Bits per parameter and task, 1 to 4."""

    @classmethod
    def variants(cls) -> Mapping[str, Mapping[str, Any]]:
        return {f"{cls.name}-{bits}": {"bits": bits} for bits in (1, 2)}

    def settings(self) -> dict[str, Any]:
        # recorded even at its default: the number of planes decides how a trigger is read
        return {"name": self.name, "bits": self.bits}

    def title(self) -> str:
        return f"{self.name}, {self.bits} bit{'s' if self.bits > 1 else ''}"

    def fuse(self, bench: Workbench, state: FusedState, new: Sequence[NewExpert]) -> FusedState:
        for expert in new:
            state = self._fuse_one(bench, state, expert)
        return state

    def rebuild(self, bench: Workbench, experts: Sequence[NewExpert]) -> FusedState:
        """One profile of all original task vectors, and every trigger encoded against it."""
        if not experts:
            return FusedState()
        vectors = [expert.vector for expert in experts]
        profile = _profile_name(len(experts))
        state = FusedState(shared={profile: self._write_profile(bench, vectors, [])}, reads=(profile,))
        for session, expert in enumerate(experts, 1):
            entry = self._encode(bench, expert, state.shared, profile, session)
            state = replace(state, session=session, tasks={**state.tasks, expert.task: entry})
        return state

    def _fuse_one(self, bench: Workbench, state: FusedState, new: NewExpert) -> FusedState:
        num_tasks, session = len(state.tasks) + 1, state.session + 1
        newest = next(iter(state.reads), None)
        shared, tasks = dict(state.shared), dict(state.tasks)
        if newest is None or (num_tasks in PROFILE_OPENS_AT and num_tasks > _opened_for(newest)):
            others = [self.decoder(bench, state, task) for task in state.tasks]
            newest = _profile_name(num_tasks)
            shared[newest] = self._write_profile(bench, [new.vector], others)
            if self.bits == 1:
                tasks = {task: replace(entry, decoded_with=(newest,)) for task, entry in tasks.items()}
        tasks[new.task] = self._encode(bench, new, shared, newest, session)
        fused = FusedState(session, shared, tasks, reads=(newest,)).pruned()
        bench.drop_own(shared.values(), kept=fused.shared.values())
        return fused

    def _write_profile(self, bench: Workbench, own: Sequence[TaskVector], others: Sequence[SignedDecoder]) -> BlobRef:
        """Write a profile of exact task vectors (`own`) and decoupled ones (`others`)."""
        with bench.blobs({name: TensorSpec("F16", spec.shape) for name, spec in bench.specs.items()}) as (blob,):

            def work(chunk: Chunk) -> None:
                profile = OpenProfile(bench.kernels, chunk.rows)
                for vector in own:
                    check_finite(profile.add(vector.delta(chunk, bench.buffers)), vector, chunk.name)
                for decoder in others:
                    profile.add(decoder.delta(chunk))
                blob.write(chunk.name, profile.close(), start=chunk.start)

            bench.map(work)
        return blob.ref

    def _encode(
        self, bench: Workbench, new: NewExpert, shared: Mapping[str, BlobRef], profile: str, session: int
    ) -> TaskEntry:
        """Write an expert's trigger and record. Returns its line for the manifest."""
        file, rows = bench.cache.tensors(shared[profile]), {n: spec.num_rows for n, spec in bench.specs.items()}
        layout = bench.plane_specs(self.bits) | {f"row/{n}": TensorSpec("F32", (count,)) for n, count in rows.items()}
        if self.bits > 1:
            layout |= {f"level/{n}": TensorSpec("F32", (2 ** (self.bits - 1),)) for n in rows}
        norm = 0.0
        with bench.blobs(layout | dict(new.vector.changed_buffers())) as (trigger,):
            for batch in _batches(bench.chunks):
                norm += _Encoder(bench, new.vector, file, trigger, self.bits).encode(batch)
            copy_buffers(new.vector, trigger)
        return bench.put_record(new, trigger.ref, norm, session=session, decoded_with=(profile,))

    def decoder(self, bench: Workbench, state: FusedState, task: str) -> SignedDecoder:
        entry = state.tasks[task]
        (profile,) = entry.decoded_with
        return SignedDecoder(bench, bench.trigger(entry), bench.cache.tensors(state.shared[profile]), self.bits)


def _profile_name(num_tasks: int) -> str:
    """The name in a state of the profile that was opened for a number of tasks."""
    return f"{_PROFILE}{num_tasks}"


def _opened_for(profile: str) -> int:
    return int(profile.removeprefix(_PROFILE))


@dataclass(frozen=True)
class _Measured:
    """What was measured on a chunk. `norm` is sum |delta|."""

    norm: float
    scales_S: np.ndarray
    histogram_P2: np.ndarray | None


class _Encoder:
    """Encodes one task vector against a profile, whole tensors at a time: levels are fitted per tensor."""

    def __init__(
        self, bench: Workbench, vector: TaskVector, profile: TensorFile, trigger: BlobWriter, bits: int
    ) -> None:
        self._bench = bench
        self._vector = vector
        self._profile = profile
        self._trigger = trigger
        self._bits = bits
        self._room = np.empty((2, 0), np.float32)

    def encode(self, batch: Sequence[Chunk]) -> float:
        """Encode the chunks of some tensors. Returns the sum of mean |delta| over these tensors.

        Values read for measuring are kept for encoding, unless a tensor is so large that reading it again is cheaper.
        """
        kept = self._places(batch)
        measured = self._bench.map(lambda chunk: self._measure(chunk, kept.get(chunk)), batch)
        levels = {chunk.name: np.ones(1, np.float32) for chunk in batch}
        if self._bits > 1:
            histograms = {chunk.name: np.zeros((LEVEL_BINS, 2)) for chunk in batch}
            for chunk, one in zip(batch, measured, strict=True):
                assert one.histogram_P2 is not None, "with more than one bit there are levels"
                histograms[chunk.name] += one.histogram_P2
            for name, histogram_P2 in histograms.items():
                levels[name] = fit_levels(histogram_P2, 2 ** (self._bits - 1))
                self._trigger.write(f"level/{name}", levels[name])
        scales = {chunk: one.scales_S for chunk, one in zip(batch, measured, strict=True)}

        def write(chunk: Chunk) -> None:
            delta_N, profile_N = kept.get(chunk) or self._read(chunk)
            planes_KB = self._bench.kernels.encode(
                delta_N, profile_N, scales[chunk], chunk.rows, levels[chunk.name], bits=self._bits
            )
            for k, plane_B in enumerate(planes_KB):
                self._trigger.write(f"plane/{k}/{chunk.name}", plane_B, start=chunk.first_byte)

        self._bench.map(write, batch)
        sizes = self._bench.specs
        return sum(one.norm / sizes[c.name].elements for c, one in zip(batch, measured, strict=True) if c.size)

    def _places(self, batch: Sequence[Chunk]) -> dict[Chunk, tuple[np.ndarray, np.ndarray]]:
        """Buffers for delta and g of each chunk, in memory that every batch reuses; none for a large tensor."""
        size = sum(chunk.size for chunk in batch)
        if size > 2 * _BATCH_ELEMENTS:
            return {}
        if self._room.shape[1] < size:
            self._room = np.empty((2, size), np.float32)
        places, start = {}, 0
        for chunk in batch:
            delta_N, profile_N = self._room[:, start : start + chunk.size]
            places[chunk], start = (delta_N, profile_N), start + chunk.size
        return places

    def _read(self, chunk: Chunk, place: tuple[np.ndarray, np.ndarray] | None = None) -> tuple[np.ndarray, np.ndarray]:
        """delta and g, float32 [N], in the given buffers, else in the thread's own."""
        delta_N, profile_N = place or (None, self._bench.buffers.take("profile", chunk.size))
        self._profile.read_float32(chunk.name, chunk.start, profile_N)
        return self._vector.delta(chunk, self._bench.buffers, out_N=delta_N), profile_N

    def _measure(self, chunk: Chunk, place: tuple[np.ndarray, np.ndarray] | None) -> _Measured:
        """Read a chunk and measure what later steps need. Writes mu."""
        kernels = self._bench.kernels
        delta_N, profile_N = self._read(chunk, place)
        sums_S = kernels.sum_abs(delta_N, chunk.rows)
        check_finite(sums_S, self._vector, chunk.name)
        scales_S = (sums_S / np.maximum(np.diff(chunk.rows), 1)).astype(np.float32)
        self._trigger.write(f"row/{chunk.name}", scales_S, start=chunk.first_row)
        histogram_P2 = None
        if self._bits > 1:
            step = _SAMPLE_STEP if self._bench.specs[chunk.name].elements > _SAMPLED_ABOVE else 1
            histogram_P2 = kernels.level_histogram(delta_N, profile_N, scales_S, chunk.rows, step=step)
        return _Measured(float(sums_S.sum()), scales_S, histogram_P2)


class SignedDecoder:
    """One task's trigger and profile, decoded piece by piece."""

    def __init__(self, bench: Workbench, trigger: TensorFile, profile: TensorFile, bits: int) -> None:
        self._bench = bench
        self._trigger = trigger
        self._profile = profile
        self._bits = bits

    def delta(self, chunk: Chunk) -> np.ndarray:
        trigger, name = self._trigger, chunk.name
        profile_N = self._bench.buffers.take("profile", chunk.size)
        self._profile.read_float32(name, chunk.start, profile_N)
        planes_KB = np.empty((self._bits, chunk.num_bytes), np.uint8)
        for k, plane_B in enumerate(planes_KB):
            trigger.read_into(f"plane/{k}/{name}", chunk.first_byte, plane_B)
        scales_S = trigger.read(f"row/{name}", chunk.first_row, chunk.first_row + chunk.num_rows)
        levels_Q = trigger.read(f"level/{name}") if self._bits > 1 else np.ones(1, np.float32)
        return self._bench.kernels.decode(planes_KB, profile_N, scales_S, levels_Q, chunk.rows)

    def bits(self, chunk: Chunk) -> tuple[int, int]:
        plane_B = self._bench.read_planes([self._trigger], chunk)[0]
        written = int(np.bitwise_count(plane_B).sum())
        return written, written


def _batches(chunks: Sequence[Chunk]) -> Iterator[list[Chunk]]:
    """Chunks of whole tensors, a few million elements at a time, so that few histograms are in memory."""
    batch: list[Chunk] = []
    for chunk in chunks:
        if batch and chunk.name != batch[-1].name and sum(c.size for c in batch) >= _BATCH_ELEMENTS:
            yield batch
            batch = []
        batch.append(chunk)
    if batch:
        yield batch
