"""Task arithmetic: one model, the base plus the scaled sum of all task vectors (Ilharco et al., ICLR 2023).

theta = theta_0 + scale * sum over tasks of delta_i. The default is the paper's scale for eight CLIP tasks, 0.3. The
paper tunes the scale on held-out images of the tasks; here it is not tuned. Peak memory: one tensor, twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fusion.baselines import Experts, OneModel, task_vector
from fusion.baselines.shelf import Shelf
from fusion.tensors import TensorFile


@dataclass(frozen=True)
class TaskArithmetic(OneModel):
    """The scaled sum.

    Attributes:
        scale: factor of every task vector, dimensionless; with one task, 1 restores its expert.
    """

    name: ClassVar[str] = "task-arithmetic"
    scale: float = 0.3

    @property
    def title(self) -> str:
        return f"task arithmetic, scale {self.scale:g}"

    def fuse(self, base: TensorFile, experts: Experts, shelf: Shelf) -> None:
        self.put_model(
            base, shelf, ((name, scaled_sum(base, experts, name, scale=self.scale)) for name in base.fused_names())
        )


def scaled_sum(base: TensorFile, experts: Experts, name: str, *, scale: float) -> np.ndarray:
    """scale * sum of delta_i for one tensor, float32 [N]; reads one expert at a time."""
    total_N = np.zeros(base.specs[name].elements, np.float32)
    for expert in experts.values():
        total_N += task_vector(base, expert, name)
    return np.float32(scale) * total_N
