"""Mode `joint`: unify all original task vectors at once. The best that the paper's one-bit trigger can do.

Adding a task reads every archived expert again and writes every trigger anew: a bound to compare with, and a choice
for teams that keep their experts anyway.

Suffixes: N elements of one tensor. Source: ConDU (arXiv 2503.10705), unify with all task vectors at hand.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np

from fusion.errors import ConfigError
from fusion.modes import NewExpert, Workbench
from fusion.modes.iterative import masked_mean, mean_abs, rescaler
from fusion.planes import pack, plane_bytes, unpack
from fusion.state import FusedState
from fusion.tensors import TensorSpec, check_same_layout, task_vector


def unify_tensor(deltas: Sequence[np.ndarray]) -> tuple[np.ndarray, list[np.ndarray]]:
    """Unify one tensor of all task vectors.

    f = +1 if sum_i delta_i > 0 else -1; m_i = delta_i f > 0; tau = f max_i m_i |delta_i|.

    Args:
        deltas: float32 [N] each; read twice, never changed.
    Returns: tau, float32 [N], and m_i, bool [N] each.
    """
    sum_N = np.zeros_like(deltas[0])
    for delta_N in deltas:
        sum_N += delta_N
    up_N = sum_N > 0
    size_N = np.zeros_like(sum_N)
    masks = []
    for delta_N in deltas:
        mask_N = np.where(up_N, delta_N > 0, delta_N < 0)
        np.maximum(size_N, np.where(mask_N, np.abs(delta_N), np.float32(0)), out=size_N)
        masks.append(mask_N)
    return np.where(up_N, size_N, -size_N), masks


class Joint:
    """Mode `joint` over whole states. Peak memory: the largest tensor, once in fp32 for each task."""

    name = "joint"
    needs_archive = True

    def settings(self) -> dict[str, Any]:
        return {"name": self.name}

    def fuse(self, bench: Workbench, state: FusedState, new: Sequence[NewExpert]) -> FusedState:
        session = state.session + 1
        experts = [self._archived(bench, state, task) for task in state.tasks] + list(new)
        base = bench.base
        for expert in experts:
            check_same_layout(base, expert.weights)
        specs = {name: base.specs[name] for name in base.fused_names()}
        planes = {f"plane/0/{name}": TensorSpec("U8", (plane_bytes(spec.elements),)) for name, spec in specs.items()}
        layouts = [planes | bench.changed_buffers(expert.weights) for expert in experts]
        norms, masked = np.zeros(len(experts)), np.zeros(len(experts))
        with ExitStack() as stack:
            unified = stack.enter_context(bench.blob({n: TensorSpec("F32", s.shape) for n, s in specs.items()}))
            triggers = [stack.enter_context(bench.blob(layout)) for layout in layouts]
            for name in specs:
                deltas = [task_vector(base, expert.weights, name) for expert in experts]
                unified_N, masks = unify_tensor(deltas)
                unified.write(name, unified_N)
                size_N = np.abs(unified_N)
                for i, (delta_N, mask_N) in enumerate(zip(deltas, masks, strict=True)):
                    triggers[i].write(f"plane/0/{name}", pack(mask_N))
                    norms[i] += mean_abs(delta_N)
                    masked[i] += masked_mean(size_N, mask_N)
            for expert, trigger, layout in zip(experts, triggers, layouts, strict=True):
                bench.copy_buffers(expert.weights, trigger, layout)
        tasks = {}
        for i, expert in enumerate(experts):
            old = state.tasks.get(expert.task)
            tasks[expert.task] = bench.put_record(
                expert,
                triggers[i],
                float(norms[i]),
                session=old.session if old else session,
                scale=rescaler(norms[i], masked[i]),
            )
        return FusedState(session=session, unified=unified.ref, tasks=tasks)

    def _archived(self, bench: Workbench, state: FusedState, task: str) -> NewExpert:
        record = bench.record(state.tasks[task])
        if record.archive is None:
            raise ConfigError(
                f"mode 'joint' re-reads every expert, and that of task {task!r} was not archived: set "
                "fusion.archive_experts: true from the first task on, in a new store"
            )
        describe = {
            "classes": record.classes,
            "templates": record.templates,
            "prototypes": record.prototypes,
            "archive": record.archive,
        }
        return NewExpert(bench.cache.tensors(record.archive), task, record.expert_sha256, describe)

    def decouple(self, bench: Workbench, state: FusedState, task: str) -> Iterator[tuple[str, np.ndarray]]:
        entry = state.tasks[task]
        assert state.unified, "a state with tasks has a unified vector"
        unified, trigger = bench.cache.tensors(state.unified), bench.trigger(entry)
        scale = np.float32(entry.scale or 0.0)
        for name in bench.base.fused_names():
            unified_N = unified.array(name).reshape(-1)
            mask_N = unpack(trigger.array(f"plane/0/{name}"), unified_N.size)
            yield name, np.where(mask_N, scale * unified_N, np.float32(0))
