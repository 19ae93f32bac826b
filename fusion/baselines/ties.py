"""TIES-Merging: one model from trimmed task vectors that agree in sign (Yadav et al., NeurIPS 2023).

Trim: of each task vector, over all its tensors together, keep only the `density` share with the largest magnitudes.
Elect: per element, the sign of the sum of the trimmed task vectors. Merge: the mean of the trimmed, non-zero elements
that have the elected sign (where the sum is 0, no sign is elected and nothing changes). theta = theta_0 + scale *
merged. The defaults are the paper's for the case without tuning: density 0.2, scale 1. Peak memory: one tensor, once
per task.
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
        density: share of each task vector that is kept, in (0, 1].
        scale: factor of the merged vector, dimensionless.
    """

    name: ClassVar[str] = "ties"
    density: float = 0.2
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.density <= 1:
            raise ConfigError(f"ties: density is {self.density}, it must be above 0 and at most 1")

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
    """The smallest magnitude that is kept: the one with rank round(density * size), or the largest if that is 0.

    Exact, in two passes and without sorting: the bits of non-negative float32 numbers sort like the numbers, so a
    histogram of the upper half of the bits finds the bin of the rank, and one of the lower half the value.

    Args:
        vector: called twice; yields the tensors of a whole task vector, float32 [N] each.
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
    """The elements whose magnitude is at least the threshold; 0 elsewhere."""
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
    """The bin of the element with a rank, counted from the largest, and the number of elements above that bin."""
    from_top = np.cumsum(counts[::-1])
    place = int(np.searchsorted(from_top, rank))
    return counts.size - 1 - place, int(from_top[place - 1]) if place else 0
