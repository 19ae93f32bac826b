"""The shelf: the arrays that a baseline keeps, for one task or for all, each in a safetensors file, and their size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from fusion.tensors import TensorFile, write_tensors

_Slot = tuple[str, str | None]


class Shelf:
    """Arrays in a folder of their own, each written once. Only their names are kept in memory.

    Args:
        folder: created if missing; the caller removes it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[_Slot, Path] = {}
        self._bytes: dict[_Slot, int] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def __contains__(self, slot: _Slot) -> bool:
        return slot in self._files

    def put(self, key: str, values: np.ndarray | torch.Tensor, *, task: str | None = None) -> None:
        """Keep an array for one task, or for all tasks (None)."""
        slot = (key, task)
        assert slot not in self._files, f"{slot} is on the shelf already"
        tensor = torch.as_tensor(values).contiguous()
        path = self._folder / f"{len(self._files):06d}.safetensors"
        write_tensors(path, {"values": tensor})
        self._files[slot] = path
        self._bytes[slot] = tensor.numel() * tensor.element_size()

    def tensor(self, key: str, *, task: str | None = None) -> torch.Tensor:
        """An array as it was kept, memory-mapped: clone before writing."""
        return TensorFile(self._files[key, task]).tensor("values")

    def get(self, key: str, *, task: str | None = None) -> np.ndarray:
        """An array as a new numpy array (uint16 for bfloat16)."""
        return TensorFile(self._files[key, task]).array("values")

    def task_bytes(self, task: str) -> int:
        """Bytes kept for one task, not counting file headers."""
        return sum(size for (_, owner), size in self._bytes.items() if owner == task)

    @property
    def shared_bytes(self) -> int:
        """Bytes kept once for all tasks."""
        return sum(size for (_, owner), size in self._bytes.items() if owner is None)
