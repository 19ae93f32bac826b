"""Mode `joint`: unify all original task vectors at once. The best that the paper's one-bit trigger can do.

Adding a task reads every archived expert again and rewrites every trigger: a bound to compare with, and an option for
teams that keep their experts anyway.

Suffixes: N elements of a chunk, T tasks, S segments. Source: ConDU (arXiv 2503.10705), unify over all task vectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fusion.chunks import CHUNK_ELEMENTS, Chunk, chunks_of
from fusion.modes.masked import (
    UNIFIED,
    MaskedDecoder,
    MaskedMode,
    norm_specs,
    per_element,
    segments,
    specs_in,
    stored,
)
from fusion.modes.registry import register
from fusion.modes.workbench import NewExpert, Workbench, copy_buffers
from fusion.task_vectors import check_finite
from fusion.versions.state import FusedState

_TASKS_PER_CHUNK = 16
"""With more task vectors than this, chunks get smaller, so that memory does not grow with the number of tasks."""


@register
@dataclass(frozen=True)
class Joint(MaskedMode):
    """Mode `joint` over whole states. Peak memory: one chunk of every task vector per thread."""

    name = "joint"
    needs_archive = True
    note = "adding a task needs every expert again, so all checkpoints must be kept; they are not counted here"
    traces = f"{MaskedMode.traces} until the next fuse, which rebuilds it from the archived experts"

    def fuse(self, bench: Workbench, state: FusedState, new: Sequence[NewExpert]) -> FusedState:
        old = [bench.archived(task, entry) for task, entry in state.tasks.items()]
        sessions = [entry.session for entry in state.tasks.values()] + [state.session + 1] * len(new)
        return self._unify(bench, [*old, *new], sessions)

    def rebuild(self, bench: Workbench, experts: Sequence[NewExpert]) -> FusedState:
        return self._unify(bench, experts, [1] * len(experts))

    def _unify(self, bench: Workbench, experts: Sequence[NewExpert], sessions: Sequence[int]) -> FusedState:
        layout = bench.plane_specs(1) | norm_specs(bench, self.scales)
        layouts = [layout | dict(expert.vector.changed_buffers()) for expert in experts]
        chunks = chunks_of(bench.specs, CHUNK_ELEMENTS * _TASKS_PER_CHUNK // max(_TASKS_PER_CHUNK, len(experts)))
        with bench.blobs(specs_in(bench, self.dtype), *layouts) as (unified, *triggers):

            def work(chunk: Chunk) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
                deltas_TN = bench.buffers.take("deltas", len(experts) * chunk.size).reshape(len(experts), chunk.size)
                for expert, delta_N in zip(experts, deltas_TN, strict=True):
                    expert.vector.delta(chunk, bench.buffers, out_N=delta_N)
                starts_S = segments(chunk, self.scales)
                tau_N, planes_TB, masked_ST, norms_ST, squares_2 = bench.kernels.unify_all(
                    deltas_TN, starts_S, dtype=self.dtype
                )
                unified.write(chunk.name, stored(tau_N, self.dtype), start=chunk.start)
                means_ST = (norms_ST / np.maximum(np.diff(starts_S), 1)[:, None]).astype(np.float32)
                for t, (expert, trigger) in enumerate(zip(experts, triggers, strict=True)):
                    check_finite(norms_ST[:, t], expert.vector, chunk.name)
                    trigger.write(f"plane/0/{chunk.name}", planes_TB[t], start=chunk.first_byte)
                    if self.scales == "row":
                        trigger.write(f"norm/{chunk.name}", means_ST[:, t].copy(), start=chunk.first_row)
                return masked_ST.sum(axis=0), norms_ST.sum(axis=0), squares_2

            masked_T = np.zeros(len(experts))
            norms = {name: np.zeros(len(experts)) for name in bench.specs}
            squares_2 = np.zeros(2)
            for chunk, (masked, norm, squares) in zip(chunks, bench.map(work, chunks), strict=True):
                squares_2 += squares
                masked_T += per_element(masked, bench.specs[chunk.name].elements)
                norms[chunk.name] += per_element(norm, bench.specs[chunk.name].elements)
            for t, (expert, trigger) in enumerate(zip(experts, triggers, strict=True)):
                if self.scales == "tensor":
                    for name, norms_T in norms.items():
                        trigger.write(f"norm/{name}", norms_T[t : t + 1].astype(np.float32))
                copy_buffers(expert.vector, trigger)
        bench.note_rounding("unified", squares_2)
        tasks = {}
        for t, expert in enumerate(experts):
            n_t = float(sum(norms_T[t] for norms_T in norms.values()))
            scale = self.task_scale(n_t, float(masked_T[t]))
            tasks[expert.task] = bench.put_record(
                expert, triggers[t].ref, n_t, session=sessions[t], scale=scale, decoded_with=(UNIFIED,)
            )
        return FusedState(max(sessions, default=0), {UNIFIED: unified.ref}, tasks)

    def decoder(self, bench: Workbench, state: FusedState, task: str) -> MaskedDecoder:
        return MaskedDecoder(bench, bench.cache.tensors(state.shared[UNIFIED]), None, state.tasks[task], self.scales)
