"""Directions from a random range: as good as the whole matrix's where it is used; not used where it would miss some."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fusion.factors.algebra import CpuAlgebra, DeviceAlgebra
from fusion.factors.components import encode
from fusion.factors.spectrum import largest


def matrix(shape: tuple[int, int], rank: int, *, noise: float = 0.0, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    values = np.arange(1, rank + 1, dtype=np.float32) ** np.float32(-1)
    left = random.standard_normal((shape[0], rank), dtype=np.float32) * values
    found = left @ random.standard_normal((rank, shape[1]), dtype=np.float32)
    return found + np.float32(noise) * random.standard_normal(shape, dtype=np.float32)


class Counting(CpuAlgebra):
    """Notes the sides of what is decomposed."""

    def __init__(self) -> None:
        self.sides: list[int] = []

    def eigh(self, symmetric: Any) -> tuple[np.ndarray, Any]:
        self.sides.append(len(symmetric))
        return super().eigh(symmetric)


def above(threshold: float) -> Any:
    return lambda values: int((values > threshold).sum())


@pytest.mark.parametrize("shape", [(600, 900), (900, 600)])
def test_few_directions_come_from_a_range_and_are_those_of_the_matrix(shape: tuple[int, int]) -> None:
    delta, algebra = matrix(shape, 40, noise=0.01), Counting()
    exact = np.linalg.svd(delta, compute_uv=False)
    counts = above(float(exact[25]) * 1.001)
    values, right = largest(delta, counts, algebra)
    assert algebra.sides == [100], "a sixth of the smaller side"
    assert counts(values) == 25
    np.testing.assert_allclose(values[:25], exact[:25], rtol=1e-3)
    np.testing.assert_allclose(right[:, :25].T @ right[:, :25], np.eye(25), atol=1e-3)


@pytest.mark.parametrize("rank", [120, 400])
def test_more_directions_than_the_range_holds_take_the_whole_matrix(rank: int) -> None:
    delta, algebra = matrix((600, 900), rank), Counting()
    exact = np.linalg.svd(delta, compute_uv=False)
    counts = above(float(exact[rank - 1]) * 0.999)
    values, _ = largest(delta, counts, algebra)
    assert algebra.sides == [100, 600]
    assert counts(values) == rank


def test_a_direction_outside_of_the_range_is_noticed() -> None:
    """All values are equal: the range holds a hundred of them, and none tells that there are others."""
    random = np.random.default_rng(0)
    delta, algebra = np.linalg.qr(random.standard_normal((600, 600)))[0].astype(np.float32), Counting()
    values, _ = largest(delta, lambda found: int((found > 0.9).sum()) if len(found) != 100 else 50, algebra)
    assert algebra.sides == [100, 600]
    assert (values > 0.9).all()


@pytest.mark.parametrize("rank", [1, 3])
def test_a_range_of_more_columns_than_the_rank_is_no_trouble(rank: int) -> None:
    delta = matrix((700, 520), rank)
    found = encode(delta, 1e-3, CpuAlgebra())
    assert found is not None
    assert len(found.left) == rank
    decoded = found.rows(0, 700, np.dtype(np.float64), CpuAlgebra())
    assert np.linalg.norm(decoded - delta) < 1e-3 * np.linalg.norm(delta)


def test_a_range_costs_no_more_bytes_or_error_than_a_few_in_a_hundred() -> None:
    delta = matrix((768, 1024), 256, noise=0.02)
    whole, some = (encode(delta, 0.05, CpuAlgebra(), exact=exact) for exact in (True, False))
    assert whole is not None
    assert some is not None

    def error(found: Any) -> float:
        return float(np.linalg.norm(found.rows(0, 768, np.dtype(np.float64), CpuAlgebra()) - delta))

    assert error(some) < 1.02 * error(whole)
    assert len(some.left) <= len(whole.left)


def test_torch_makes_the_same_basis() -> None:
    values = matrix((300, 40), 40)
    ours, theirs = CpuAlgebra(), DeviceAlgebra("cpu")
    basis = ours.orthonormal(values)
    np.testing.assert_allclose(basis.T @ basis, np.eye(40), atol=1e-5)
    np.testing.assert_allclose(theirs.down(theirs.orthonormal(theirs.up(values))), basis, atol=1e-5)
