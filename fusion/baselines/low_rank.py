"""Low rank: each matrix of the task vector cut to its best rank-r approximation, in fp16 (LoRA's form, after training).

The singular value decomposition delta = U S V is truncated to its r largest values, and kept as two fp16 factors,
U sqrt(S) [out, r] and sqrt(S) V [r, in] (Eckart-Young: no other matrix of rank r is nearer). The form is that of LoRA
(Hu et al., ICLR 2022), which trains such factors from the start; a fully fine-tuned expert need not be close to a low
rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from fusion.baselines.factored import Factored
from fusion.baselines.shelf import Shelf
from fusion.errors import ConfigError


@dataclass(frozen=True)
class LowRank(Factored):
    """Truncated task vectors.

    Attributes:
        rank: rank of every matrix, at least 1.
    """

    name: ClassVar[str] = "low-rank"
    rank: int = 16

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ConfigError(f"low-rank: rank is {self.rank}, it must be at least 1")

    @property
    def title(self) -> str:
        return f"low rank {self.rank}, fp16"

    def put_matrix(self, shelf: Shelf, name: str, task: str, matrix: np.ndarray) -> bool:
        if self.rank * sum(matrix.shape) >= matrix.size:
            return False
        left, right = truncate(matrix, self.rank)
        shelf.put(f"left/{name}", left, task=task)
        shelf.put(f"right/{name}", right, task=task)
        return True

    def get_matrix(self, shelf: Shelf, name: str, task: str, shape: tuple[int, int]) -> np.ndarray:
        left, right = (shelf.get(f"{side}/{name}", task=task).astype(np.float32) for side in ("left", "right"))
        product: np.ndarray = left @ right
        return product

    def keeps(self, shelf: Shelf, name: str, task: str) -> bool:
        return (f"left/{name}", task) in shelf


def truncate(matrix: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """The two fp16 factors, [out, r] and [r, in], of the nearest matrix with this rank."""
    left, values, right = torch.linalg.svd(torch.from_numpy(matrix), full_matrices=False)
    root = values[:rank].sqrt()
    return (left[:, :rank] * root).half().numpy(), (root[:, None] * right[:rank]).half().numpy()
