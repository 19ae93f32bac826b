"""Plain fusion, for comparison: the equations as they are usually written in torch.

Models and task vectors are dicts of tensors, masks are boolean tensors. A session decouples every old task into a
whole model, like the released code (which copies the model for each expert), takes the task vectors of all models,
and unifies them. Everything is in memory before the clock starts.
"""

from __future__ import annotations

import json
import time

import torch

from fusion.memory import PeakMemory

Vector = dict[str, torch.Tensor]


def main(shapes: dict[str, tuple[int, ...]], num_tasks: int) -> None:
    """Add the last of `num_tasks` tasks to the others and print seconds and peak memory as JSON."""
    whole = PeakMemory()
    generator = torch.Generator().manual_seed(0)
    base = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    state = unify([_expert(base, k) for k in range(num_tasks - 1)])
    expert = _expert(base, num_tasks - 1, base)
    total = whole.extra_bytes()
    memory, start = PeakMemory(), time.perf_counter()
    add(state, base, expert)
    seconds = time.perf_counter() - start
    total = max(total, memory.peak_bytes())
    print(json.dumps({"seconds": seconds, "peak_gib": memory.extra_bytes() / 2**30, "total_gib": total / 2**30}))


def add(
    state: tuple[Vector, list[Vector], list[float]], base: Vector, expert: Vector
) -> tuple[Vector, list[Vector], list[float]]:
    """Decouple the old tasks into models, then unify the task vectors of all models."""
    unified, masks, scales = state
    experts = [
        {name: base[name] + scale * mask[name] * unified[name] for name in unified}
        for mask, scale in zip(masks, scales, strict=True)
    ]
    return unify([{name: model[name] - base[name] for name in base} for model in [*experts, expert]])


def unify(deltas: list[Vector]) -> tuple[Vector, list[Vector], list[float]]:
    """tau, masks and scales of all task vectors."""
    names = list(deltas[0])
    sign = {n: torch.where(sum(d[n] for d in deltas) > 0, 1.0, -1.0) for n in names}  # type: ignore[arg-type]
    masks = [{n: d[n] * sign[n] > 0 for n in names} for d in deltas]
    kept = [{n: m[n] * d[n].abs() for n in names} for d, m in zip(deltas, masks, strict=True)]
    unified = {n: sign[n] * torch.stack([k[n] for k in kept]).amax(0) for n in names}
    scales = [
        float(sum(d[n].abs().mean() for n in names) / sum((m[n] * unified[n].abs()).mean() for n in names))
        for d, m in zip(deltas, masks, strict=True)
    ]
    return unified, masks, scales


def _expert(base: Vector, number: int, origin: Vector | None = None) -> Vector:
    """A random task vector, or with `origin` the corresponding expert."""
    generator = torch.Generator().manual_seed(1 + number)
    deltas = {name: 0.01 * torch.randn(tensor.shape, generator=generator) for name, tensor in base.items()}
    return {name: delta + origin[name] for name, delta in deltas.items()} if origin else deltas
