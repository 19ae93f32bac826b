"""The largest singular values of a matrix and their right singular vectors: exactly, or from a random range.

A large matrix is multiplied with random vectors and by itself once more, which leaves the directions that matter if
these are few; the rest is a small problem (Halko, Martinsson and Tropp 2011, arXiv 0909.4061, algorithm 4.4). What the
range leaves out is then looked at: if its largest direction would have mattered too, the matrix is decomposed whole.

Letters: R rows, C columns, K values.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fusion.factors.algebra import Algebra

_LARGE, _SHARE = 512, 6
"""Smaller sides are decomposed whole: that takes no longer. Of larger ones, a range has one column in so many."""
_LOOKED_AT, _LOOKS = 4, 3
"""Random vectors, and multiplications, that tell the largest direction of what a range leaves out."""


def largest(
    delta: Any, counts: Callable[[np.ndarray], int], algebra: Algebra, *, exact: bool = False
) -> tuple[np.ndarray, Any]:
    """Singular values in descending order, float64 on the CPU [K], and right singular vectors [C, K], on the device.

    Args:
        delta: float32 [R, C], on the device.
        counts: how many of the largest values matter. All of these are found, and maybe more.
        exact: never from a random range.
    """
    small = min(delta.shape)
    if small >= _LARGE and not exact:
        size = small // _SHARE
        values, right, left_out = _in_range(delta, size, algebra)
        if counts(values) < size and not counts(np.array([left_out])):
            return values, right
    return _whole(delta, algebra)


def _whole(delta: Any, algebra: Algebra) -> tuple[np.ndarray, Any]:
    """From the eigenvalues of the smaller Gram matrix: values far below the largest lose digits, and do not matter."""
    rows, columns = delta.shape
    if columns <= rows:
        squares, right = algebra.eigh(delta.T @ delta)
        return np.sqrt(np.maximum(squares, 0)), right
    squares, left = algebra.eigh(delta @ delta.T)
    return _right_of(delta.T, squares, left, algebra)


def _in_range(delta: Any, size: int, algebra: Algebra) -> tuple[np.ndarray, Any, float]:
    """Values and right vectors within a random range of `size` columns, and the largest value outside of it."""
    random = np.random.default_rng(0)
    columns = delta.shape[1]
    start = algebra.up(random.standard_normal((columns, size), dtype=np.float32))
    again = algebra.orthonormal(delta.T @ algebra.orthonormal(delta @ start))
    basis = algebra.orthonormal(delta @ again)  # [R, size]
    inside = basis.T @ delta  # [size, C]
    squares, vectors = algebra.eigh(inside @ inside.T)
    values, right = _right_of(inside.T, squares, vectors, algebra)
    seen = algebra.up(random.standard_normal((columns, _LOOKED_AT), dtype=np.float32))
    length = 0.0
    for _ in range(_LOOKS):  # delta^T delta on what is outside: towards its largest direction, from below
        seen = algebra.orthonormal(seen)
        outside = delta @ seen - basis @ (inside @ seen)
        length = float(np.sqrt(np.square(algebra.down(outside), dtype=np.float64).sum(0).max()))
        seen = delta.T @ outside - inside.T @ (basis.T @ outside)
    return values, right, length


def _right_of(transposed: Any, squares: np.ndarray, left: Any, algebra: Algebra) -> tuple[np.ndarray, Any]:
    """Singular values, and right vectors from left ones [R, K], of a matrix given transposed [C, R]."""
    values = np.sqrt(np.maximum(squares, 0))
    inverse = np.divide(1.0, values, out=np.zeros_like(values), where=values > 0)
    return values, transposed @ (left * algebra.up(inverse.astype(np.float32)))
