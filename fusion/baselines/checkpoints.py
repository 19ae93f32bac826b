"""Every checkpoint kept: each task's own expert as it is. All other methods are measured against it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fusion.baselines import Experts
from fusion.baselines.shelf import Shelf
from fusion.tensors import TensorFile


@dataclass(frozen=True)
class Checkpoints:
    """The experts themselves. It has no settings, and loses nothing."""

    name: ClassVar[str] = "checkpoints"
    one_model: ClassVar[bool] = False
    title: ClassVar[str] = "every checkpoint"

    def fuse(self, base: TensorFile, experts: Experts, shelf: Shelf) -> None:
        for task, expert in experts.items():
            for name in base.fused_names():
                shelf.put(f"expert/{name}", expert.tensor(name), task=task)

    def rebuild(self, base: TensorFile, shelf: Shelf, name: str, task: str) -> np.ndarray:
        return shelf.tensor(f"expert/{name}", task=task).float().numpy().reshape(-1)
