"""A matrix as a sum of quantised rank-one components, which every machine decodes to the same bits.

    delta_hat = sum_k gamma_k u_k v_k^T,    u_k, v_k integer vectors,    gamma_k = m 2^e with m in 8 .. 15

Every term is an integer times a power of two. While the terms' magnitudes add up to less than 2^24 units (2^53 in
float64), each partial sum fits the mantissa, so the result does not depend on the BLAS, its threads or its order.

Letters: R rows, C columns, K components.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np

from fusion.factors.algebra import Algebra
from fusion.factors.spectrum import largest

SLOPE = 0.7 * math.log(2) / 6
"""What a bit has to earn, in units of step^2: seven tenths of what it earns in a fine uniform quantiser, where the
error is step^2 / 12 and falls by a factor of four with each bit."""

_EXACT_32, _EXACT_64 = 2.0**24, 2.0**53
_MANTISSA_BITS = 4
_RIDGE = 1e-6
"""Of the mean squared length of the components: keeps a refit solvable where two of them became equal."""


@dataclass(frozen=True)
class Components:
    """The components of one matrix.

    Attributes:
        left: u, int32 [K, R].
        right: v, int32 [K, C].
        mantissas, exponents: m and e, int32 [K].
    """

    left: np.ndarray
    right: np.ndarray
    mantissas: np.ndarray
    exponents: np.ndarray

    @property
    def weights(self) -> np.ndarray:
        """gamma_k in units of the smallest exponent's power of two, float64 [K]: integers."""
        return np.ldexp(self.mantissas.astype(np.float64), self.exponents - self.exponents.min(initial=0))

    def largest_sum(self) -> float:
        """The largest sum of |gamma u v| over the components, of any element, in units; inf if it may be over 2^53.

        The bound by largest factors is tried first; where it is too large, the sums themselves are computed.
        """
        tops = np.abs(self.left).max(1, initial=0), np.abs(self.right).max(1, initial=0)
        bound = float((self.weights * tops[0] * tops[1]).sum())
        if bound < _EXACT_32 or bound >= _EXACT_64:
            return bound if bound < _EXACT_64 else math.inf
        sums = (np.abs(self.left).T * self.weights) @ np.abs(self.right).astype(np.float64)
        return float(sums.max(initial=0.0))

    def dtype(self) -> np.dtype[Any] | None:
        """The narrowest dtype in which every partial sum is exact; None if float64 is not enough."""
        largest = self.largest_sum()
        if largest < _EXACT_32:
            return np.dtype(np.float32)
        return np.dtype(np.float64) if largest < _EXACT_64 else None

    def rows(self, first: int, last: int, dtype: np.dtype[Any], algebra: Algebra) -> np.ndarray:
        """Rows [first, last) of delta_hat, float32 [last - first, C], with sums in `dtype`."""
        left = self.left[:, first:last].T * self.weights
        product = algebra.product(left.astype(dtype), self.right.astype(dtype))
        found = np.ldexp(product, self.exponents.min(initial=0)).astype(np.float32, copy=False)
        found += 0.0  # the sign of a zero does depend on the order of the sum: -0 becomes 0
        return found


def encode(matrix: np.ndarray, step: float, algebra: Algebra, *, exact: bool = False) -> Components | None:
    """The components of a float32 [R, C] at a quantiser step > 0; None where no component is worth its bits.

    `exact`: find directions by decomposing the whole matrix, however large it is.
    """
    # scaled by a power of two, which rounds nothing, to steps near 1: no square overflows or vanishes
    shift = math.frexp(step)[1]
    delta, step = algebra.up(np.ldexp(matrix, -shift)), math.ldexp(step, -shift)
    worth = partial(_worth, shape=matrix.shape, step=step)
    values, right = largest(delta, worth, algebra, exact=exact)
    kept = worth(values)
    if not kept:
        return None
    v = algebra.down(algebra.rounded(right[:, :kept] * algebra.up((values[:kept] / step).astype(np.float32))))
    v = _without_empty(v)
    if not v.size:
        return None
    u, v, gammas = _left_for(delta, v, step, algebra)
    if not v.size:
        return None
    scaled = algebra.up((u * _values(*gammas)).astype(np.float32))
    v = _without_empty(np.rint(algebra.down(_refit(delta.T, scaled, algebra))))
    if not v.size:
        return None
    u, v, (mantissas, exponents) = _left_for(delta, v, step, algebra)
    if not v.size:
        return None
    return Components(u.T.astype(np.int32), v.T.astype(np.int32), mantissas, exponents + np.int32(shift))


def _worth(values: np.ndarray, shape: tuple[int, int], step: float) -> int:
    """How many of the largest components explain more than their bits cost."""
    sides = [(size, values / (step * math.sqrt(size))) for size in shape]
    error = step**2 * sum(size * _interpolated(spread, 1) for size, spread in sides)
    bits = sum(size * _interpolated(spread, 0) for size, spread in sides)
    return int((values**2 - error > SLOPE * step**2 * bits).sum())


def _left_for(
    delta: Any, v: np.ndarray, step: float, algebra: Algebra
) -> tuple[np.ndarray, np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """u, float [R, K], and gamma for given v, [C, K]: least squares, each column at its own power-of-two-like step.

    Components whose u rounds to nothing are left out of all three, v included.
    """
    exact = algebra.down(_refit(delta, algebra.up(v.astype(np.float32)), algebra))
    mantissas, exponents = _dyadic(step / np.sqrt((v.astype(np.float64) ** 2).sum(0)))
    u = np.rint(exact / _values(mantissas, exponents))
    alive = np.abs(u).max(0) > 0
    return u[:, alive], v[:, alive], (mantissas[alive], exponents[alive])


def _refit(delta: Any, factor: Any, algebra: Algebra) -> Any:
    """The X, [R, K], that minimises |delta - X factor^T|, for a factor [C, K]."""
    gram = algebra.down(factor.T @ factor).astype(np.float64)
    gram += _RIDGE * gram.diagonal().mean() * np.eye(len(gram))
    inverse = np.linalg.inv(gram)
    return (delta @ factor) @ algebra.up(inverse.astype(np.float32))


def _dyadic(targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The nearest m 2^e with m in 8 .. 15: mantissas and exponents, int32."""
    fractions, exponents = np.frexp(targets)  # fraction in [1/2, 1)
    mantissas = np.rint(fractions * 2**_MANTISSA_BITS)
    exponents = exponents - _MANTISSA_BITS
    over = mantissas == 2**_MANTISSA_BITS
    return np.where(over, mantissas / 2, mantissas).astype(np.int32), np.where(over, exponents + 1, exponents)


def _values(mantissas: np.ndarray, exponents: np.ndarray) -> np.ndarray:
    return np.ldexp(mantissas.astype(np.float64), exponents)


def _without_empty(factor: np.ndarray) -> np.ndarray:
    return factor[:, np.abs(factor).max(0) > 0]


def _interpolated(spreads: np.ndarray, column: int) -> np.ndarray:
    """Entropy (column 0, bits) or squared error (1, of a step of 1) of a rounded Gaussian with these deviations."""
    logs, table = _gaussians()
    return np.interp(np.log(np.maximum(spreads, 1e-30)), logs, table[:, column])


@cache
def _gaussians() -> tuple[np.ndarray, np.ndarray]:
    logs = np.linspace(math.log(2.0**-5), math.log(2.0**12), 200)
    return logs, np.array([list(_rounded_gaussian(math.exp(log))) for log in logs])


def _rounded_gaussian(spread: float) -> Iterator[float]:
    """Entropy in bits and mean squared error of rounding a Gaussian to integers."""
    if spread > 4:  # both limits hold to three digits
        yield math.log2(spread * math.sqrt(2 * math.pi * math.e))
        yield 1 / 12
        return
    edges = np.arange(-40, 42) - 0.5
    scaled = edges / spread
    below = np.array([0.5 * math.erfc(-edge / math.sqrt(2)) for edge in scaled])
    density = np.exp(-(scaled**2) / 2) / math.sqrt(2 * math.pi)
    shares = np.diff(below)
    seen = shares[shares > 0]
    yield float(-(seen * np.log2(seen)).sum())
    # integral of (x - k)^2 over each cell, from the moments of a truncated Gaussian
    whole = np.arange(-40, 41)
    first = -spread * np.diff(density)
    second = spread**2 * shares - spread * np.diff(edges * density)
    yield float((second - 2 * whole * first + whole**2 * shares).sum())
