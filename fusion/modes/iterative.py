"""Mode `iterative`: the paper's own. Each session unifies the decoupled old tasks with the new task vector.

It needs the last version and the new expert, nothing else. In closed form one pass over tau, delta and the planes does
it, and planes are written once: an old mask loses a bit exactly where the sign of tau changes, so
    m_i at session t = (plane written at session i) and [last_flip <= i].
Masks are compared bit for bit with the reference, so every operation below is float32 in this order, without fused
multiply-add; sums of means are float64.

Suffixes: N elements of one tensor. Source: ConDU (arXiv 2503.10705), unify and decouple.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fusion.modes import NewExpert, Workbench
from fusion.planes import pack, plane_bytes, unpack
from fusion.state import FusedState, TaskEntry
from fusion.tensors import TensorFile, TensorSpec, check_same_layout, task_vector

_MAX_UINT8_SESSION = 255


@dataclass(frozen=True)
class FusedTensor:
    """One tensor after a session: tau', last_flip', the new plane, and mean(m'_i |tau'|) of old and new tasks."""

    unified_N: np.ndarray
    last_flip_N: np.ndarray
    plane_B: np.ndarray
    masked_means: list[float]


def fuse_tensor(
    unified_N: np.ndarray,
    last_flip_N: np.ndarray,
    masks: Iterable[np.ndarray],
    scales: Sequence[float],
    delta_N: np.ndarray,
    session: int,
) -> FusedTensor:
    """Unify one tensor's decoupled old tasks with a new task vector, in closed form.

    With b_i the old masks: S = sum lambda_i b_i, L = max lambda_i b_i; s = tau S + delta; f = +1 if s > 0 else -1;
    m_i' = b_i and tau f > 0; m_t = delta f > 0; tau' = f max(|tau| L where tau f > 0, |delta| where delta f > 0).

    Args:
        unified_N: tau, float32.
        last_flip_N: last session in which the sign of tau changed or became 0, unsigned.
        masks: b_i, bool [N], of every old task, as they are before this session. Iterated twice.
        scales: lambda_i before this session.
        delta_N: the new task vector, float32.
        session: number of this session, from 1.
    """
    sum_N = np.zeros_like(unified_N)
    max_N = np.zeros_like(unified_N)
    for mask_N, scale in zip(masks, scales, strict=True):
        term_N = np.float32(scale) * mask_N.astype(np.float32)
        sum_N += term_N
        np.maximum(max_N, term_N, out=max_N)
    up_N = unified_N * sum_N + delta_N > 0
    kept_N = np.where(up_N, unified_N > 0, unified_N < 0)  # tau f > 0
    new_N = np.where(up_N, delta_N > 0, delta_N < 0)  # delta f > 0
    size_N = np.maximum(
        np.where(kept_N, np.abs(unified_N) * max_N, np.float32(0)), np.where(new_N, np.abs(delta_N), np.float32(0))
    )
    fused_N = np.where(up_N, size_N, -size_N)
    flipped_N = (np.sign(fused_N) != np.sign(unified_N)) | (fused_N == 0)
    last_flip_N = np.where(flipped_N, np.asarray(session, last_flip_N.dtype), last_flip_N)
    return FusedTensor(
        unified_N=fused_N,
        last_flip_N=last_flip_N,
        plane_B=pack(new_N),
        masked_means=[masked_mean(size_N, mask_N & kept_N) for mask_N in masks] + [masked_mean(size_N, new_N)],
    )


def masked_mean(size_N: np.ndarray, mask_N: np.ndarray) -> float:
    """mean_n(m |tau|) in float64; 0 for an empty tensor."""
    return float(np.sum(size_N, where=mask_N, dtype=np.float64)) / size_N.size if size_N.size else 0.0


def mean_abs(delta_N: np.ndarray) -> float:
    """mean_n |delta| in float64; 0 for an empty tensor."""
    return float(np.sum(np.abs(delta_N), dtype=np.float64)) / delta_N.size if delta_N.size else 0.0


def rescaler(norm: float, masked: float) -> float:
    """lambda = n / D, and 0 where nothing of the task is left in tau."""
    return norm / masked if masked > 0 else 0.0


def mask_tensor(plane_B: np.ndarray, last_flip_N: np.ndarray, session: int) -> np.ndarray:
    """A task's mask as it is now, bool [N]: its plane, less the bits lost since its session."""
    return unpack(plane_B, last_flip_N.size) & (last_flip_N <= session)


class _Masks:
    """The old tasks' masks of one tensor, unpacked one by one each time they are asked for."""

    def __init__(
        self, triggers: Sequence[TensorFile], entries: Sequence[TaskEntry], name: str, flip_N: np.ndarray
    ) -> None:
        self._planes = [file.array(f"plane/0/{name}") for file in triggers]
        self._sessions = [entry.session for entry in entries]
        self._flip_N = flip_N

    def __iter__(self) -> Iterator[np.ndarray]:
        for plane_B, session in zip(self._planes, self._sessions, strict=True):
            yield mask_tensor(plane_B, self._flip_N, session)


class Iterative:
    """Mode `iterative` over whole states."""

    name = "iterative"
    needs_archive = False

    def settings(self) -> dict[str, Any]:
        return {"name": self.name}

    def fuse(self, bench: Workbench, state: FusedState, new: Sequence[NewExpert]) -> FusedState:
        for expert in new:
            before, state = state, self._fuse_one(bench, state, expert)
            bench.drop_own([before.unified, before.last_flip])
        return state

    def _fuse_one(self, bench: Workbench, state: FusedState, new: NewExpert) -> FusedState:
        base, weights = bench.base, new.weights
        check_same_layout(base, weights)
        session = state.session + 1
        flip_dtype = "U8" if session <= _MAX_UINT8_SESSION else "U16"
        unified = bench.cache.tensors(state.unified) if state.unified else None
        last_flip = bench.cache.tensors(state.last_flip) if state.last_flip else None
        entries = list(state.tasks.values())
        triggers = [bench.trigger(entry) for entry in entries]
        names = base.fused_names()
        specs = {name: base.specs[name] for name in names}
        trigger_specs = {
            f"plane/0/{name}": TensorSpec("U8", (plane_bytes(spec.elements),)) for name, spec in specs.items()
        }
        trigger_specs |= bench.changed_buffers(weights)
        norm, masked = 0.0, np.zeros(len(entries) + 1)
        with ExitStack() as stack:
            new_unified = stack.enter_context(bench.blob({n: TensorSpec("F32", s.shape) for n, s in specs.items()}))
            new_flip = stack.enter_context(bench.blob({n: TensorSpec(flip_dtype, s.shape) for n, s in specs.items()}))
            trigger = stack.enter_context(bench.blob(trigger_specs))
            for name in names:
                delta_N = task_vector(base, weights, name)
                unified_N = unified.array(name).reshape(-1) if unified else np.zeros_like(delta_N)
                flip_N = last_flip.array(name).reshape(-1) if last_flip else np.zeros(delta_N.size, np.uint8)
                masks = _Masks(triggers, entries, name, flip_N)
                flip_N = flip_N.astype(np.uint8 if flip_dtype == "U8" else np.uint16)
                fused = fuse_tensor(
                    unified_N, flip_N, masks, [entry.scale or 0.0 for entry in entries], delta_N, session
                )
                new_unified.write(name, fused.unified_N)
                new_flip.write(name, fused.last_flip_N)
                trigger.write(f"plane/0/{name}", fused.plane_B)
                norm += mean_abs(delta_N)
                masked += fused.masked_means
            bench.copy_buffers(weights, trigger, trigger_specs)
        tasks = {
            task: replace(entry, scale=rescaler(bench.record(entry).norm, masked[i]))
            for i, (task, entry) in enumerate(state.tasks.items())
        }
        scale = rescaler(norm, masked[-1])
        tasks[new.task] = bench.put_record(new, trigger, norm, session=session, scale=scale)
        return FusedState(session=session, unified=new_unified.ref, last_flip=new_flip.ref, tasks=tasks)

    def decouple(self, bench: Workbench, state: FusedState, task: str) -> Iterator[tuple[str, np.ndarray]]:
        entry = state.tasks[task]
        assert state.unified is not None
        assert state.last_flip is not None
        unified, last_flip = bench.cache.tensors(state.unified), bench.cache.tensors(state.last_flip)
        trigger = bench.trigger(entry)
        scale = np.float32(entry.scale or 0.0)
        for name in bench.base.fused_names():
            mask_N = mask_tensor(trigger.array(f"plane/0/{name}"), last_flip.array(name).reshape(-1), entry.session)
            yield name, np.where(mask_N, scale * unified.array(name).reshape(-1), np.float32(0))
