"""EMR-Merging: elect, mask and rescale, one shot over all task vectors (Huang et al., NeurIPS 2024).

Elect, per element: the sign gamma of the sum of the task vectors, and as magnitude the largest among those that have
this sign; together tau. Mask: m_i = [delta_i * tau > 0]. Rescale, one number a task over the whole vector:
lambda_i = sum |delta_i| / sum |m_i * tau|. The model of task i is theta_0 + lambda_i * m_i * tau.

Election and masks are those of condu's mode `joint`; what differs is the rescaler, which there is a quotient of means
per tensor, so that small tensors count as much as large ones. Stored: tau in fp32 for all, a bit a parameter and one
number a task. Peak memory: one tensor, once for each task.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fusion.baselines import Experts, task_vectors
from fusion.baselines.shelf import Shelf
from fusion.modes.joint import unify_tensor
from fusion.planes import pack, unpack
from fusion.tensors import TensorFile


@dataclass(frozen=True)
class Emr:
    """Elect, mask, rescale. It has no setting."""

    name: ClassVar[str] = "emr"
    one_model: ClassVar[bool] = False
    title: ClassVar[str] = "EMR-Merging"

    def fuse(self, base: TensorFile, experts: Experts, shelf: Shelf) -> None:
        own, masked = np.zeros(len(experts)), np.zeros(len(experts))
        for name in base.fused_names():
            deltas = task_vectors(base, experts, name)
            unified_N, masks = unify_tensor(deltas)
            shelf.put(f"unified/{name}", unified_N)
            for i, (task, delta_N, mask_N) in enumerate(zip(experts, deltas, masks, strict=True)):
                shelf.put(f"mask/{name}", pack(mask_N), task=task)
                own[i] += np.abs(delta_N).sum(dtype=np.float64)
                masked[i] += np.abs(unified_N[mask_N]).sum(dtype=np.float64)
        for task, sum_own, sum_masked in zip(experts, own, masked, strict=True):
            scale = sum_own / sum_masked if sum_masked else 0.0  # an expert that is the base has no mask
            shelf.put("scale", np.array(scale, np.float32), task=task)

    def rebuild(self, base: TensorFile, shelf: Shelf, name: str, task: str) -> np.ndarray:
        base_N, unified_N = base.float32(name).reshape(-1), shelf.get(f"unified/{name}")
        mask_N = unpack(shelf.get(f"mask/{name}", task=task), unified_N.size)
        return base_N + np.where(mask_N, shelf.get("scale", task=task) * unified_N, np.float32(0))
