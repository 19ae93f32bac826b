"""What methods share that keep each matrix of a task vector as two factors: which rows moved, and what is kept whole.

A tensor that never changed, and rows of a matrix that never did (most of a token table), cost nothing but the index of
the others. Convolution kernels are treated as [out, -1]. Vectors, and matrices no larger than their factors, are kept
whole in fp16. Tasks share nothing. Peak memory: one tensor and its decomposition.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np

from fusion.baselines import Experts, task_vector
from fusion.baselines.shelf import Shelf
from fusion.errors import StateDictError
from fusion.tensors import TensorFile

_LARGEST_HALF = float(np.finfo(np.float16).max)


class Factored(ABC):
    """A method that keeps matrices as factors, however it stores these."""

    one_model: ClassVar[bool] = False

    @abstractmethod
    def put_matrix(self, shelf: Shelf, name: str, task: str, matrix: np.ndarray) -> bool:
        """Keep the factors of a float32 [R, C]; False, and nothing kept, where the matrix itself is no larger."""

    @abstractmethod
    def get_matrix(self, shelf: Shelf, name: str, task: str, shape: tuple[int, int]) -> np.ndarray:
        """The matrix that was kept, float32 [R, C]; `shape` is (R, C)."""

    def fuse(self, base: TensorFile, experts: Experts, shelf: Shelf) -> None:
        for name in base.fused_names():
            for task, expert in experts.items():
                delta = task_vector(base, expert, name).reshape(base.specs[name].num_rows, -1)
                if np.abs(delta).max(initial=0) > _LARGEST_HALF:
                    raise StateDictError(f"{expert.label}: tensor {name!r} changed by more than fp16 can represent")
                moved = np.flatnonzero(delta.any(1))
                if not moved.size:
                    continue
                if moved.size < len(delta):
                    shelf.put(f"moved/{name}", moved.astype(np.int32), task=task)
                if len(base.specs[name].shape) < 2 or not self.put_matrix(shelf, name, task, delta[moved]):
                    shelf.put(f"whole/{name}", delta[moved].astype(np.float16), task=task)

    def rebuild(self, base: TensorFile, shelf: Shelf, name: str, task: str) -> np.ndarray:
        theta = base.float32(name).reshape(base.specs[name].num_rows, -1)
        own = {key for key in ("moved", "whole") if (f"{key}/{name}", task) in shelf}
        rows = shelf.get(f"moved/{name}", task=task) if "moved" in own else np.arange(len(theta))
        if "whole" in own:
            theta[rows] += shelf.get(f"whole/{name}", task=task).astype(np.float32)
        elif self.keeps(shelf, name, task):
            theta[rows] += self.get_matrix(shelf, name, task, (len(rows), theta.shape[1]))
        return theta.reshape(-1)

    @abstractmethod
    def keeps(self, shelf: Shelf, name: str, task: str) -> bool:
        """Whether `put_matrix` kept this tensor."""
