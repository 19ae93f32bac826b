"""EMR-Merging: elect, mask and rescale, one shot over all task vectors (Huang et al., NeurIPS 2024).

Elect, per element: the sign gamma of the sum of the task vectors, and the largest magnitude among those with this sign;
together they are tau. Mask: m_i = [delta_i * tau > 0]. Rescale, by one number per task for the whole vector:
lambda_i = sum |delta_i| / sum |m_i * tau|. The model of task i is theta_0 + lambda_i * m_i * tau.

Election and masks are those of condu's one-shot unification of all task vectors (`Kernels.unify_all`). The rescaler
differs: there it is a ratio of sums of means per tensor, so that small tensors count as much as large ones. Stored: tau
in fp32 for all tasks; one bit per parameter and one number per task. Peak memory: one tensor, twice per task.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fusion.baselines import Experts, task_vectors
from fusion.baselines.shelf import Shelf
from fusion.kernels import open_kernels
from fusion.tensors import TensorFile


@dataclass(frozen=True)
class Emr:
    """Elect, mask, rescale. It has no settings."""

    name: ClassVar[str] = "emr"
    one_model: ClassVar[bool] = False
    title: ClassVar[str] = "EMR-Merging"

    def fuse(self, base: TensorFile, experts: Experts, shelf: Shelf) -> None:
        kernels = open_kernels()
        own_T, masked_T = np.zeros(len(experts)), np.zeros(len(experts))
        for name in base.fused_names():
            deltas_TN = np.stack(task_vectors(base, experts, name))
            unified_N, planes_TB, masked_ST, own_ST, _ = kernels.unify_all(
                deltas_TN, _whole(deltas_TN[0]), dtype="float32"
            )
            shelf.put(f"unified/{name}", unified_N)
            for task, plane_B in zip(experts, planes_TB, strict=True):
                shelf.put(f"mask/{name}", plane_B, task=task)
            own_T += own_ST[0]
            masked_T += masked_ST[0]
        for task, own, masked in zip(experts, own_T, masked_T, strict=True):
            scale = own / masked if masked else 0.0  # an expert equal to the base has an empty mask
            shelf.put("scale", np.array([scale], np.float32), task=task)

    def rebuild(self, base: TensorFile, shelf: Shelf, name: str, task: str) -> np.ndarray:
        unified_N = shelf.get(f"unified/{name}")
        plane_B, scale_S = shelf.get(f"mask/{name}", task=task), shelf.get("scale", task=task)
        delta_N = open_kernels().decouple(unified_N, None, plane_B, 0, scale_S, _whole(unified_N))
        return base.float32(name).reshape(-1) + delta_N


def _whole(values_N: np.ndarray) -> np.ndarray:
    """The bounds of a tensor as one segment, int64 [2]."""
    return np.array([0, values_N.size], np.int64)
