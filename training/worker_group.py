"""The workers that train one task together, and what they exchange besides gradients: numbers, never objects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import distributed


@dataclass(frozen=True)
class WorkerGroup:
    """This worker's place among `size` workers of one process group. With one worker every call is free.

    `device` is where the process group moves tensors: `cpu` for gloo, the rank's own `cuda:N` for NCCL.
    """

    size: int = 1
    rank: int = 0
    device: str = "cpu"

    def from_first(self, number: int) -> int:
        """Rank 0's number, in every rank."""
        if self.size == 1:
            return number
        tensor = torch.tensor([number], dtype=torch.int64, device=self.device)
        distributed.broadcast(tensor, src=0)
        return int(tensor.item())

    def any(self, here: bool) -> bool:
        """Whether `here` is true in at least one rank."""
        return self.sum(float(here)) > 0

    def sum(self, number: float) -> float:
        """Sum over the ranks."""
        if self.size == 1:
            return number
        tensor = torch.tensor([number], dtype=torch.float64, device=self.device)
        distributed.all_reduce(tensor)
        return float(tensor.item())

    def add_up(self, tensors: Sequence[torch.Tensor]) -> None:
        """Overwrite each tensor with its sum over the ranks. All are on `device`, alike in all ranks."""
        if self.size > 1:
            for summing in [distributed.all_reduce(tensor, async_op=True) for tensor in tensors]:
                summing.wait()

    def copy_from_first(self, tensor: torch.Tensor) -> None:
        """Overwrite a tensor with rank 0's. Shape and dtype are the same in all ranks; the device may be any."""
        if self.size > 1:
            moved = tensor.detach().to(self.device).contiguous()
            distributed.broadcast(moved, src=0)
            tensor.data.copy_(moved)
