"""BitDelta-style: the task's own sign and one scale per tensor (Liu et al., BitDelta, NeurIPS 2024).

delta_hat = mean |delta| * (+1 where delta > 0, else -1); for these signs no other scale is nearer to delta. BitDelta
packs the linear layers of a language model, and then tunes the scales by distillation. Here every tensor of the task
vector is packed and nothing is tuned, hence "style". Tasks share nothing. A tensor that never changed stays exactly the
base's, but single elements that never changed do not. Peak memory: one tensor, three times.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fusion.baselines import Experts, task_vector
from fusion.baselines.shelf import Shelf
from fusion.planes import pack, unpack
from fusion.tensors import TensorFile


@dataclass(frozen=True)
class BitDelta:
    """Sign and scale. It has no settings."""

    name: ClassVar[str] = "bitdelta"
    one_model: ClassVar[bool] = False
    title: ClassVar[str] = "BitDelta-style"

    def fuse(self, base: TensorFile, experts: Experts, shelf: Shelf) -> None:
        for name in base.fused_names():
            for task, expert in experts.items():
                delta_N = task_vector(base, expert, name)
                shelf.put(f"plane/{name}", pack(delta_N > 0), task=task)
                shelf.put(f"scale/{name}", np.array(np.abs(delta_N).mean(dtype=np.float64), np.float32), task=task)

    def rebuild(self, base: TensorFile, shelf: Shelf, name: str, task: str) -> np.ndarray:
        base_N = base.float32(name).reshape(-1)
        plane_N = unpack(shelf.get(f"plane/{name}", task=task), base_N.size)
        scale = shelf.get(f"scale/{name}", task=task)
        return base_N + np.where(plane_N, scale, -scale)
