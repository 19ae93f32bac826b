"""Simple average: one model whose every weight is the mean of the experts' (Wortsman et al., Model soups, ICML 2022).

theta = theta_0 + mean over tasks of delta_i, which is the mean of the theta_i. Peak memory: one tensor, twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fusion.baselines import Experts, OneModel
from fusion.baselines.shelf import Shelf
from fusion.baselines.task_arithmetic import scaled_sum
from fusion.tensors import TensorFile


@dataclass(frozen=True)
class Average(OneModel):
    """The mean of the experts. It has no settings."""

    name: ClassVar[str] = "average"
    title: ClassVar[str] = "simple average"

    def fuse(self, base: TensorFile, experts: Experts, shelf: Shelf) -> None:
        share = 1 / len(experts)
        self.put_model(
            base, shelf, ((name, scaled_sum(base, experts, name, scale=share)) for name in base.fused_names())
        )
