"""TIES-Merging: one model from trimmed task vectors that agree in sign (Yadav et al., NeurIPS 2023).

Trim: of each task vector, over all its tensors together, only the `density` share with the largest magnitudes stays.
Elect: per element the sign of the sum of the trimmed task vectors. Merge: the mean of the trimmed, non-zero elements
that have the elected sign (where the sum is 0 nothing is elected and nothing moves). theta = theta_0 + scale * merged.
Defaults are the paper's where nothing is tuned: density 0.2, scale 1. Peak memory: one tensor, once for each task.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fusion.baselines import Experts, OneModel, task_vector, task_vectors
from fusion.baselines.shelf import Shelf
from fusion.errors import ConfigError
from fusion.tensors import TensorFile

_HALF_BITS = 16


@dataclass(frozen=True)
class Ties(OneModel):
    """Trim, elect, merge.

    Attributes:
        density: share of each task vector that stays, in (0, 1].
        scale: factor of the merged vector.
    """

    name: ClassVar[str] = "ties"
    density: float = 0.2
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.density <= 1:
            raise ConfigError(f"ties: density is {self.density}, it has to be above 0 and at most 1")

    @property
    def title(self) -> str:
        return f"TIES, top {100 * self.density:g} %, scale {self.scale:g}"

    def fuse(self, base: TensorFile, experts: Experts, shelf: Shelf) -> None:
        names = base.fused_names()

        def vector_of(expert: TensorFile) -> Callable[[], Iterable[np.ndarray]]:
            return lambda: (task_vector(base, expert, name) for name in names)

        thresholds = [trim_threshold(vector_of(expert), self.density) for expert in experts.values()]

        def merged(name: str) -> np.ndarray:
            deltas = task_vectors(base, experts, name)
            return np.float32(self.scale) * elect_and_merge(list(map(trim, deltas, thresholds)))

        self.put_model(base, shelf, ((name, merged(name)) for name in names))


def trim_threshold(vector: Callable[[], Iterable[np.ndarray]], density: float) -> np.float32:
    """The magnitude from which on an element stays: that of rank round(density * size), at least the first.

    Exact, in two passes and without sorting: the bits of a non-negative float32 order like the float, so a histogram
    of their upper half finds the bin of the wanted rank, one of the lower half the value.

    Args:
        vector: gives the tensors of a whole task vector, float32 [N] each, whenever it is called.
    """
    upper = np.zeros(1 << _HALF_BITS, np.int64)
    for delta_N in vector():
        upper += np.bincount(_magnitude_bits(delta_N) >> _HALF_BITS, minlength=upper.size)
    rank = max(1, round(density * int(upper.sum())))
    head, above = _bin_of_rank(upper, rank)
    lower = np.zeros(1 << _HALF_BITS, np.int64)
    for delta_N in vector():
        bits_N = _magnitude_bits(delta_N)
        lower += np.bincount(bits_N[bits_N >> _HALF_BITS == head] & (lower.size - 1), minlength=lower.size)
    tail, _ = _bin_of_rank(lower, rank - above)
    return np.float32(np.array(head << _HALF_BITS | tail, np.uint32).view(np.float32))


def trim(delta_N: np.ndarray, threshold: np.float32) -> np.ndarray:
    """The elements of at least the threshold's magnitude, 0 elsewhere."""
    return np.where(np.abs(delta_N) >= threshold, delta_N, np.float32(0))


def elect_and_merge(trimmed: Sequence[np.ndarray]) -> np.ndarray:
    """Mean of the non-zero elements that have the sign of the sum, float32 [N]; 0 where there are none."""
    total_N = np.zeros_like(trimmed[0])
    for delta_N in trimmed:
        total_N += delta_N
    elected_N = np.sign(total_N)
    agreeing_N, count_N = np.zeros_like(total_N), np.zeros_like(total_N)
    for delta_N in trimmed:
        agrees_N = delta_N * elected_N > 0
        agreeing_N += np.where(agrees_N, delta_N, np.float32(0))
        count_N += agrees_N
    return agreeing_N / np.maximum(count_N, 1)


def _magnitude_bits(delta_N: np.ndarray) -> np.ndarray:
    return np.abs(delta_N).view(np.uint32)


def _bin_of_rank(counts: np.ndarray, rank: int) -> tuple[int, int]:
    """The bin that holds the element of a rank, counted from the largest, and how many lie above that bin."""
    from_top = np.cumsum(counts[::-1])
    place = int(np.searchsorted(from_top, rank))
    return counts.size - 1 - place, int(from_top[place - 1]) if place else 0
