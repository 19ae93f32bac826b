from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from training.metrics import continual, wilson_interval


def test_a_matrix_worked_by_hand() -> None:
    matrix = np.array([[0.9, 0.2, 0.4], [0.8, 0.7, 0.6], [0.7, 0.5, 0.8]])
    figures = continual(matrix)
    assert figures.transfer == pytest.approx((0.2 + (0.4 + 0.6) / 2) / 2)
    assert figures.avg == pytest.approx((0.8 + 1.4 / 3 + 0.6) / 3)
    assert figures.last == pytest.approx(2.0 / 3)


def test_transfer_is_undefined_for_a_single_task() -> None:
    figures = continual(np.array([[0.5]]))
    assert math.isnan(figures.transfer)
    assert figures.avg == figures.last == 0.5


def test_a_triangular_matrix_averages_what_it_has() -> None:
    figures = continual(np.array([[0.8, np.nan], [0.6, 0.5]]))
    assert math.isnan(figures.transfer)
    assert figures.avg == pytest.approx((0.7 + 0.5) / 2)
    assert figures.last == pytest.approx(0.55)


@pytest.mark.parametrize("shape", [(2, 3), (0, 0), (4,)])
def test_a_matrix_that_is_not_square_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="square"):
        continual(np.zeros(shape))


@given(arrays(np.float64, (5, 5), elements=st.floats(0, 1)))
def test_the_figures_follow_their_definitions(matrix: np.ndarray) -> None:
    tasks = range(5)
    transfer = np.mean([np.mean([matrix[t, i] for t in range(i)]) for i in tasks if i > 0])
    figures = continual(matrix)
    assert figures.transfer == pytest.approx(transfer)
    assert figures.avg == pytest.approx(np.mean([np.mean([matrix[t, i] for t in tasks]) for i in tasks]))
    assert figures.last == pytest.approx(np.mean([matrix[4, i] for i in tasks]))


def test_wilson_agrees_with_the_textbook() -> None:
    assert wilson_interval(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert wilson_interval(0, 20)[0] == 0.0
    assert wilson_interval(20, 20)[1] == 1.0
    assert all(math.isnan(bound) for bound in wilson_interval(0, 0))
    with pytest.raises(ValueError, match="5 correct of 4"):
        wilson_interval(5, 4)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_encloses_the_proportion_and_narrows_with_more_images(counts: tuple[int, int]) -> None:
    correct, total = counts
    low, high = wilson_interval(correct, total)
    assert 0 <= low <= correct / total <= high <= 1
    wide, narrow = high - low, np.diff(wilson_interval(4 * correct, 4 * total))[0]
    assert narrow < wide
