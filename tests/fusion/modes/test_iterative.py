"""Mode `iterative`: the closed form against the definition, and the laws that make planes write-once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fusion.kernels.cpu import CpuKernels
from fusion.modes.masked import rescaler
from tests.fusion import reference

# few distinct magnitudes, and zeros: implementations differ in ties and in signs that cancel
values = st.sampled_from([-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0])
sessions_of_deltas = st.integers(1, 5).flatmap(
    lambda k: st.integers(1, 40).flatmap(lambda n: arrays(np.float32, (k, n), elements=values))
)


def in_closed_form(deltas: np.ndarray) -> tuple[np.ndarray, list[np.ndarray], list[float]]:
    """Session by session through the kernel: tau, masks at the end, scales."""
    size = deltas.shape[1]
    kernels, unified, flips = CpuKernels(), np.zeros(size, np.float32), np.zeros(size, np.uint8)
    planes: list[np.ndarray] = []
    norms: list[float] = []
    scales: list[float] = []
    for session, delta in enumerate(deltas, 1):
        written = np.array(planes, np.uint8).reshape(len(planes), (size + 7) // 8)
        now, starts = np.array([scales], np.float32), np.array([0, size])
        plane, masked, norm, _ = kernels.unify_next(
            unified, flips, delta, written, np.arange(1, session), now, starts, session=session, dtype="float32"
        )
        planes.append(plane)
        norms.append(float(norm[0]))
        scales = [rescaler(n, float(mass)) for n, mass in zip(norms, masked[0], strict=True)]
    return unified, [reference.mask_now(plane, flips, i) for i, plane in enumerate(planes, 1)], scales


@settings(max_examples=300, deadline=None)
@given(sessions_of_deltas)
def test_the_closed_form_is_decouple_then_unify(deltas: np.ndarray) -> None:
    unified, masks, scales = in_closed_form(deltas)
    expected_unified, expected_masks, expected_scales = reference.sessions(deltas)
    # tau * sum(lambda) and sum(lambda * tau) may round differently where signs cancel exactly: compare elsewhere
    np.testing.assert_allclose(scales, expected_scales, rtol=1e-4)
    settled = np.abs(expected_unified) > 1e-6
    np.testing.assert_allclose(unified[settled], expected_unified[settled], rtol=1e-5)
    for mask, expected in zip(masks, expected_masks, strict=True):
        np.testing.assert_array_equal(mask[settled], expected[settled])


@given(arrays(np.float32, st.integers(1, 64), elements=st.floats(-10, 10, width=32)))
def test_a_lone_task_comes_back_exactly(delta: np.ndarray) -> None:
    unified, _, (scale,) = in_closed_form(delta[None])
    np.testing.assert_array_equal(unified, delta)
    if np.any(delta):
        assert scale == pytest.approx(1.0, rel=1e-6)


@given(sessions_of_deltas)
def test_old_masks_only_lose_bits(deltas: np.ndarray) -> None:
    for t in range(1, len(deltas)):
        _, before, _ = in_closed_form(deltas[:t])
        _, after, _ = in_closed_form(deltas[: t + 1])
        for old, new in zip(before, after, strict=False):
            assert not np.any(new & ~old)


@given(sessions_of_deltas)
def test_what_is_left_of_a_task_has_its_mean_magnitude(deltas: np.ndarray) -> None:
    unified, masks, scales = in_closed_form(deltas)
    for delta, mask, scale in zip(deltas, masks, scales, strict=True):
        if scale:
            assert scale * reference.mean(unified * mask) == pytest.approx(reference.mean(delta), rel=1e-6)


def test_a_task_with_nothing_left_has_scale_zero() -> None:
    assert rescaler(0.3, 0.0) == 0.0
