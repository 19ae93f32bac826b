"""Mode `signed` (the default): each task keeps its own signs, and its magnitudes to a few levels.

What the tasks share is a magnitude profile g, an immutable fp16 blob: delta_hat = +-mu_r g q, where mu_r is the task's
mean |delta| over row r (one row for vectors and scalars) and q is 1 with one bit, else one of 2^(bits-1) levels. A row
that the task never moved comes back as exactly 0. A trigger names the profile that it was encoded against and is
decoded with no other, so nothing that a later publish does changes what an old trigger says (with one bit a trigger
may be pointed to a newer profile: its signs hold with any).

Suffixes: N elements of one tensor, R rows, B = ceil(N / 8) bytes, Q levels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np

from fusion.blobs import BlobRef, BlobWriter
from fusion.modes import NewExpert, Workbench
from fusion.modes.iterative import mean_abs
from fusion.planes import pack, plane_bytes, unpack
from fusion.state import FusedState, Profile
from fusion.tensors import TensorFile, TensorSpec, check_same_layout, task_vector

PROFILE_OPENS_AT = (1, 2, 4, 8)
"""Numbers of tasks at which a publish opens a new profile: at most four profiles, 2 bytes a parameter each."""

_FP16_MAX = 65504.0
_LEVEL_BINS = 4096
_LEVEL_RANGE = 16.0
_LLOYD_ROUNDS = 100


def num_rows(shape: tuple[int, ...]) -> int:
    """Rows of a tensor: its first dimension; one for vectors, scalars and tensors without elements."""
    return int(shape[0]) if len(shape) > 1 and 0 not in shape else 1


def row_means(delta_N: np.ndarray, rows: int) -> np.ndarray:
    """mu: mean |delta| over each row, float32 [R], summed in float64."""
    if delta_N.size == 0:
        return np.zeros(rows, np.float32)
    return np.abs(delta_N).reshape(rows, -1).mean(axis=1, dtype=np.float64).astype(np.float32)


def open_profile(deltas: Iterable[np.ndarray], rows: int, size: int) -> np.ndarray:
    """The magnitude profile of some task vectors: g_rj = (1 + sum_i |d_ij| / nu_ir) / (1 + c_r), float16 [N].

    c_r counts the tasks with nu_ir = mean |d_i| over row r > 0. The 1 is a pseudo-task: g is never 0, and is 1 where
    nobody moved.
    """
    sum_RM = np.ones((rows, size // rows), np.float32)
    count_R = np.ones(rows, np.float32)
    for delta_N in deltas:
        mean_R = row_means(delta_N, rows)
        moved_R = mean_R > 0
        inverse_R = np.divide(1, mean_R, out=np.zeros_like(mean_R), where=moved_R)
        sum_RM += np.abs(delta_N).reshape(rows, -1) * inverse_R[:, None]
        count_R += moved_R
    return np.minimum(sum_RM / count_R[:, None], _FP16_MAX).astype(np.float16).reshape(-1)


@dataclass(frozen=True)
class EncodedTensor:
    """One tensor of a trigger: sign plane and level planes, mu, and the levels (just 1.0 with one bit)."""

    planes: list[np.ndarray]
    rows_R: np.ndarray
    levels_Q: np.ndarray


def encode_tensor(delta_N: np.ndarray, profile_N: np.ndarray, rows: int, bits: int) -> EncodedTensor:
    """Encode one tensor of a task vector against a profile.

    Args:
        delta_N: task vector, float32, flat.
        profile_N: g, float16, flat.
        rows: number of rows.
        bits: 1 to 4: one for the sign, the others for the magnitude level.
    """
    rows_R = row_means(delta_N, rows)
    planes = [pack(delta_N > 0)]
    if bits == 1:
        return EncodedTensor(planes, rows_R, np.ones(1, np.float32))
    expected_N = _expected(profile_N, rows_R)
    ratio_N = np.divide(np.abs(delta_N), expected_N, out=np.zeros_like(delta_N), where=expected_N > 0)
    levels_Q = fit_levels(ratio_N, expected_N * expected_N, 2 ** (bits - 1))
    level_N = np.searchsorted((levels_Q[1:] + levels_Q[:-1]) / 2, ratio_N).astype(np.uint8)
    planes += [pack((level_N >> k & 1).astype(np.bool_)) for k in range(bits - 1)]
    return EncodedTensor(planes, rows_R, levels_Q)


def decode_tensor(encoded: EncodedTensor, profile_N: np.ndarray) -> np.ndarray:
    """delta_hat = +-mu g q, float32 [N]."""
    size_N = _expected(profile_N, encoded.rows_R)
    if len(encoded.planes) > 1:
        level_N = np.zeros(profile_N.size, np.uint8)
        for k, plane_B in enumerate(encoded.planes[1:]):
            level_N |= unpack(plane_B, profile_N.size).astype(np.uint8) << k
        size_N *= encoded.levels_Q[level_N]
    return np.where(unpack(encoded.planes[0], profile_N.size), size_N, -size_N)


def fit_levels(ratio_N: np.ndarray, weight_N: np.ndarray, num_levels: int) -> np.ndarray:
    """Lloyd's levels for |delta| / (mu g), weighted by (mu g)^2: what minimises the squared error of delta_hat.

    Runs on a histogram of 4096 bins (a level is a weighted mean of bin means, so only cell borders are rounded): one
    pass over the elements, then thousands of numbers. Deterministic.

    Returns: float32 [Q], ascending, >= 0.
    """
    bin_N = np.minimum(ratio_N * (_LEVEL_BINS / _LEVEL_RANGE), _LEVEL_BINS - 1).astype(np.int32)
    weight = np.bincount(bin_N, weights=weight_N, minlength=_LEVEL_BINS)
    moment = np.bincount(bin_N, weights=weight_N * ratio_N, minlength=_LEVEL_BINS)
    used = weight > 0
    if not used.any():
        return np.ones(num_levels, np.float32)
    weight, moment = weight[used], moment[used]
    value = moment / weight
    cumulated = np.cumsum(weight) / weight.sum()
    start = np.searchsorted(cumulated, (np.arange(num_levels) + 0.5) / num_levels).clip(max=value.size - 1)
    levels = value[start]
    for _ in range(_LLOYD_ROUNDS):
        cell = np.searchsorted((levels[1:] + levels[:-1]) / 2, value)
        mass = np.bincount(cell, weights=weight, minlength=num_levels)
        means = np.bincount(cell, weights=moment, minlength=num_levels)
        moved = np.sort(np.divide(means, mass, out=levels.copy(), where=mass > 0))
        if np.allclose(moved, levels, rtol=1e-7, atol=0):
            break
        levels = moved
    return levels.astype(np.float32)


def _expected(profile_N: np.ndarray, rows_R: np.ndarray) -> np.ndarray:
    """mu_r g, float32 [N], a new array."""
    return (profile_N.astype(np.float32).reshape(rows_R.size, -1) * rows_R[:, None]).reshape(-1)


class Signed:
    """Mode `signed` over whole states, with 1 to 4 bits a parameter and task."""

    name = "signed"
    needs_archive = False

    def __init__(self, *, bits: int = 2) -> None:
        self.bits = bits

    def settings(self) -> dict[str, Any]:
        return {"name": self.name, "bits": self.bits}

    def fuse(self, bench: Workbench, state: FusedState, new: Sequence[NewExpert]) -> FusedState:
        for expert in new:
            state = self._fuse_one(bench, state, expert)
        return state

    def _fuse_one(self, bench: Workbench, state: FusedState, new: NewExpert) -> FusedState:
        check_same_layout(bench.base, new.weights)
        num_tasks = len(state.tasks) + 1
        newest = state.profiles[-1] if state.profiles else None
        profiles, tasks = state.profiles, dict(state.tasks)
        if num_tasks in PROFILE_OPENS_AT and num_tasks > (newest.num_tasks if newest else 0):
            newest = Profile(self._write_profile(bench, state, new), num_tasks)
            profiles += (newest,)
            if self.bits == 1:
                tasks = {task: replace(entry, profile=newest.blob.sha256) for task, entry in tasks.items()}
        assert newest is not None, "the first task opens a profile"
        trigger, norm = self._write_trigger(bench, new, bench.cache.tensors(newest.blob))
        session = state.session + 1
        tasks[new.task] = bench.put_record(new, trigger, norm, session=session, profile=newest.blob.sha256)
        named = {entry.profile for entry in tasks.values()}
        kept = tuple(p for p in profiles if p.blob.sha256 in named or p is profiles[-1])
        bench.drop_own(p.blob for p in profiles if p not in kept)
        return FusedState(session=session, profiles=kept, tasks=tasks)

    def _write_profile(self, bench: Workbench, state: FusedState, new: NewExpert) -> BlobRef:
        base = bench.base
        names = base.fused_names()
        with bench.blob({name: TensorSpec("F16", base.specs[name].shape) for name in names}) as blob:
            readers = [_TriggerReader(bench, state, task, self.bits) for task in state.tasks]
            for name in names:
                spec = base.specs[name]
                own_N = task_vector(base, new.weights, name)
                others = (reader.tensor(name) for reader in readers)
                blob.write(name, open_profile(chain([own_N], others), num_rows(spec.shape), spec.elements))
        return blob.ref

    def _write_trigger(self, bench: Workbench, new: NewExpert, profile: TensorFile) -> tuple[BlobWriter, float]:
        base, norm = bench.base, 0.0
        specs: dict[str, TensorSpec] = {}
        for name in base.fused_names():
            spec = base.specs[name]
            specs |= {f"plane/{k}/{name}": TensorSpec("U8", (plane_bytes(spec.elements),)) for k in range(self.bits)}
            specs[f"row/{name}"] = TensorSpec("F32", (num_rows(spec.shape),))
            if self.bits > 1:
                specs[f"level/{name}"] = TensorSpec("F32", (2 ** (self.bits - 1),))
        specs |= bench.changed_buffers(new.weights)
        with bench.blob(specs) as trigger:
            for name in base.fused_names():
                delta_N = task_vector(base, new.weights, name)
                rows = num_rows(base.specs[name].shape)
                encoded = encode_tensor(delta_N, profile.array(name).reshape(-1), rows, self.bits)
                for k, plane_B in enumerate(encoded.planes):
                    trigger.write(f"plane/{k}/{name}", plane_B)
                trigger.write(f"row/{name}", encoded.rows_R)
                if self.bits > 1:
                    trigger.write(f"level/{name}", encoded.levels_Q)
                norm += mean_abs(delta_N)
            bench.copy_buffers(new.weights, trigger, specs)
        return trigger, norm

    def decouple(self, bench: Workbench, state: FusedState, task: str) -> Iterator[tuple[str, np.ndarray]]:
        reader = _TriggerReader(bench, state, task, self.bits)
        for name in bench.base.fused_names():
            yield name, reader.tensor(name)


class _TriggerReader:
    """One task's trigger and profile, decoded tensor by tensor."""

    def __init__(self, bench: Workbench, state: FusedState, task: str, bits: int) -> None:
        entry = state.tasks[task]
        assert entry.profile is not None, "a signed trigger names its profile"
        self._trigger = bench.trigger(entry)
        self._profile = bench.cache.tensors(state.profile(entry.profile).blob)
        self._bits = bits

    def tensor(self, name: str) -> np.ndarray:
        trigger = self._trigger
        encoded = EncodedTensor(
            planes=[trigger.array(f"plane/{k}/{name}") for k in range(self._bits)],
            rows_R=trigger.array(f"row/{name}"),
            levels_Q=trigger.array(f"level/{name}") if self._bits > 1 else np.ones(1, np.float32),
        )
        return decode_tensor(encoded, self._profile.array(name).reshape(-1))
