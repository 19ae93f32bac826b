"""Mode `iterative`: the paper's own. Each session unifies the decoupled old tasks with the new task vector.

It needs the last version and the new expert, nothing else. The closed form is one pass over tau, delta and the planes
(`Kernels.unify_next`). Planes are written once: an old mask loses a bit where the sign of tau changes, so
    m_i at session t = (plane written at session i) and [last_flip <= i].

Suffixes: N elements of a chunk, T tasks, S segments. Source: ConDU (arXiv 2503.10705), unify and decouple.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from fusion.chunks import Chunk, total
from fusion.modes.masked import (
    LAST_FLIP,
    UNIFIED,
    MaskedDecoder,
    MaskedMode,
    MaskedState,
    norm_specs,
    per_element,
    segments,
    specs_in,
    stored,
)
from fusion.modes.registry import register
from fusion.modes.workbench import NewExpert, Workbench, copy_buffers
from fusion.task_vectors import check_finite
from fusion.tensors import TensorSpec
from fusion.versions.state import FusedState

_MAX_UINT8_SESSION = 255


@register
@dataclass(frozen=True)
class Iterative(MaskedMode):
    """Mode `iterative` over whole states."""

    name = "iterative"

    def rebuild(self, bench: Workbench, experts: Sequence[NewExpert]) -> FusedState:
        return self.fuse(bench, FusedState(), experts)

    def fuse(self, bench: Workbench, state: FusedState, new: Sequence[NewExpert]) -> FusedState:
        for expert in new:
            before, state = state, self._fuse_one(bench, state, expert)
            bench.drop_own(before.shared.values(), kept=state.shared.values())
        return state

    def _fuse_one(self, bench: Workbench, state: FusedState, new: NewExpert) -> FusedState:
        session, entries = state.session + 1, list(state.tasks.values())
        flip_dtype = np.dtype(np.uint8 if session <= _MAX_UINT8_SESSION else np.uint16)
        old = None
        if state.shared:
            unified, last_flip = (bench.cache.tensors(state.shared[name]) for name in (UNIFIED, LAST_FLIP))
            old = MaskedState(bench, unified, last_flip, entries, self.scales)
        flips = {n: TensorSpec("U8" if flip_dtype.itemsize == 1 else "U16", s.shape) for n, s in bench.specs.items()}
        layout = bench.plane_specs(1) | norm_specs(bench, self.scales) | dict(new.vector.changed_buffers())
        with bench.blobs(specs_in(bench, self.dtype), flips, layout) as (new_unified, new_flip, trigger):

            def work(chunk: Chunk) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
                delta_N, starts_S = new.vector.delta(chunk, bench.buffers), segments(chunk, self.scales)
                if old:
                    tau_N, found_N, planes_TB = old.tau(chunk), old.last_flip(chunk), old.planes(chunk)
                    assert found_N is not None, "an iterative state has last_flip"
                    scales_ST = old.scales(chunk, tau_N, found_N, planes_TB)
                    flip_N, sessions_T = found_N.astype(flip_dtype, copy=False), old.sessions_T
                else:
                    tau_N, flip_N = np.zeros(chunk.size, np.float32), np.zeros(chunk.size, flip_dtype)
                    planes_TB, sessions_T = np.zeros((0, chunk.num_bytes), np.uint8), np.zeros(0, np.int64)
                    scales_ST = np.zeros((starts_S.size - 1, 0), np.float32)
                plane_B, masked_ST, norms_S, squares_2 = bench.kernels.unify_next(
                    tau_N, flip_N, delta_N, planes_TB, sessions_T, scales_ST, starts_S,
                    session=session, dtype=self.dtype,
                )  # fmt: skip
                check_finite(norms_S, new.vector, chunk.name)
                new_unified.write(chunk.name, stored(tau_N, self.dtype), start=chunk.start)
                new_flip.write(chunk.name, flip_N, start=chunk.start)
                trigger.write(f"plane/0/{chunk.name}", plane_B, start=chunk.first_byte)
                if self.scales == "row":
                    means = (norms_S / np.maximum(np.diff(starts_S), 1)).astype(np.float32)
                    trigger.write(f"norm/{chunk.name}", means, start=chunk.first_row)
                return masked_ST.sum(axis=0), norms_S.sum(), squares_2

            norms, masked_T = {name: np.zeros(1) for name in bench.specs}, np.zeros(len(entries) + 1)
            squares_2 = np.zeros(2)
            for chunk, (masked, norm, squares) in zip(bench.chunks, bench.map(work), strict=True):
                squares_2 += squares
                masked_T += per_element(masked, bench.specs[chunk.name].elements)
                norms[chunk.name] += per_element(norm, bench.specs[chunk.name].elements)
            if self.scales == "tensor":
                for name, norm in norms.items():
                    trigger.write(f"norm/{name}", norm.astype(np.float32))
            copy_buffers(new.vector, trigger)
        bench.note_rounding("unified", squares_2)
        n_new = float(total(norms.values(), np.zeros(1))[0])
        tasks = {
            task: replace(entry, scale=self.task_scale(bench.record(entry).norm, float(masked_T[i])))
            for i, (task, entry) in enumerate(state.tasks.items())
        }
        scale = self.task_scale(n_new, float(masked_T[-1]))
        tasks[new.task] = bench.put_record(
            new, trigger.ref, n_new, session=session, scale=scale, decoded_with=(UNIFIED, LAST_FLIP)
        )
        shared = {UNIFIED: new_unified.ref, LAST_FLIP: new_flip.ref}
        return FusedState(session, shared, tasks, reads=(UNIFIED, LAST_FLIP))

    def decoder(self, bench: Workbench, state: FusedState, task: str) -> MaskedDecoder:
        unified, last_flip = (bench.cache.tensors(state.shared[name]) for name in (UNIFIED, LAST_FLIP))
        return MaskedDecoder(bench, unified, last_flip, state.tasks[task], self.scales)
