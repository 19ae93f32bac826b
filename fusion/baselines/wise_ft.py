"""WiSE-FT: a task's own expert, interpolated with the base to keep some of its robustness (Wortsman et al., CVPR 2022).

theta_i' = theta_0 + alpha * delta_i. The default alpha is 0.5, which the paper recommends if nothing is tuned. One full
model per task is stored, in fp32. Peak memory: one tensor, twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fusion.baselines import Experts, task_vector
from fusion.baselines.shelf import Shelf
from fusion.tensors import TensorFile


@dataclass(frozen=True)
class WiseFt:
    """Between the base and each expert.

    Attributes:
        alpha: 0 is the base, 1 the expert.
    """

    name: ClassVar[str] = "wise-ft"
    one_model: ClassVar[bool] = False
    alpha: float = 0.5

    @property
    def title(self) -> str:
        return f"WiSE-FT, alpha {self.alpha:g}"

    def fuse(self, base: TensorFile, experts: Experts, shelf: Shelf) -> None:
        for name in base.fused_names():
            base_N = base.float32(name).reshape(-1)
            for task, expert in experts.items():
                shelf.put(f"model/{name}", base_N + np.float32(self.alpha) * task_vector(base, expert, name), task=task)

    def rebuild(self, base: TensorFile, shelf: Shelf, name: str, task: str) -> np.ndarray:
        return shelf.get(f"model/{name}", task=task)
