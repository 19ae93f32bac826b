"""Low rank: each matrix of the task vector cut to its best rank-r approximation, in fp16 (LoRA's form, after training).

The singular value decomposition delta = U S V is truncated to its r largest values, and kept as two fp16 factors,
U sqrt(S) [out, r] and sqrt(S) V [r, in] (Eckart-Young: no other matrix of rank r is nearer). The form is that of LoRA
(Hu et al., ICLR 2022), which trains such factors from the start; a fully fine-tuned expert need not be close to a low
rank. Convolution kernels are treated as [out, -1]. Vectors, and matrices no larger than their factors, are kept whole
in fp16. Tasks share nothing. Peak memory: one tensor and its decomposition.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from fusion.baselines import Experts, task_vector
from fusion.baselines.shelf import Shelf
from fusion.errors import ConfigError, StateDictError
from fusion.tensors import TensorFile

_LARGEST_HALF = float(np.finfo(np.float16).max)


@dataclass(frozen=True)
class LowRank:
    """Truncated task vectors.

    Attributes:
        rank: rank of every matrix, at least 1.
    """

    name: ClassVar[str] = "low-rank"
    one_model: ClassVar[bool] = False
    rank: int = 16

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ConfigError(f"low-rank: rank is {self.rank}, it must be at least 1")

    @property
    def title(self) -> str:
        return f"low rank {self.rank}, fp16"

    def fuse(self, base: TensorFile, experts: Experts, shelf: Shelf) -> None:
        for name in base.fused_names():
            shape = base.specs[name].shape
            for task, expert in experts.items():
                delta_N = task_vector(base, expert, name)
                if np.abs(delta_N).max(initial=0) > _LARGEST_HALF:
                    raise StateDictError(f"{expert.label}: tensor {name!r} changed by more than fp16 can represent")
                if factors_are_smaller(shape, self.rank):
                    left, right = truncate(delta_N.reshape(shape[0], -1), self.rank)
                    shelf.put(f"left/{name}", left, task=task)
                    shelf.put(f"right/{name}", right, task=task)
                else:
                    shelf.put(f"whole/{name}", delta_N.astype(np.float16), task=task)

    def rebuild(self, base: TensorFile, shelf: Shelf, name: str, task: str) -> np.ndarray:
        base_N = base.float32(name).reshape(-1)
        if (f"whole/{name}", task) in shelf:
            return base_N + shelf.get(f"whole/{name}", task=task).astype(np.float32)
        left, right = (shelf.get(f"{side}/{name}", task=task).astype(np.float32) for side in ("left", "right"))
        return base_N + (left @ right).reshape(-1)


def factors_are_smaller(shape: Sequence[int], rank: int) -> bool:
    """Whether two factors of this rank are smaller than the tensor itself, taken as a matrix [out, -1]."""
    if len(shape) < 2:
        return False
    rows, columns = shape[0], int(np.prod(shape[1:]))
    return rank * (rows + columns) < rows * columns


def truncate(matrix: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """The two fp16 factors, [out, r] and [r, in], of the nearest matrix with this rank."""
    left, values, right = torch.linalg.svd(torch.from_numpy(matrix), full_matrices=False)
    root = values[:rank].sqrt()
    return (left[:, :rank] * root).half().numpy(), (root[:, None] * right[:rank]).half().numpy()
