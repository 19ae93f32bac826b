"""Mode `iterative`: the closed form against the definition, and the laws that make planes write-once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fusion.modes.iterative import fuse_tensor, mask_tensor, masked_mean, mean_abs, rescaler
from fusion.modes.joint import unify_tensor

# few distinct magnitudes and zeros: ties and cancelling signs are where implementations differ
values = st.sampled_from([-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0])
sessions_of_deltas = st.integers(1, 5).flatmap(
    lambda k: st.integers(1, 40).flatmap(lambda n: arrays(np.float32, (k, n), elements=values))
)


def by_definition(deltas: np.ndarray) -> tuple[np.ndarray, list[np.ndarray], list[float]]:
    """Session by session: decouple the old tasks, unify them with the new one. Elements as written in the paper."""
    unified, masks, scales, norms = np.zeros(deltas.shape[1], np.float32), [], [], []
    for delta in deltas:
        old = [np.float32(scale) * mask * unified for scale, mask in zip(scales, masks, strict=True)]
        unified, masks = unify_tensor([*old, delta])
        norms.append(mean_abs(delta))
        scales = [rescaler(n, masked_mean(np.abs(unified), m)) for n, m in zip(norms, masks, strict=True)]
    return unified, masks, scales


def in_closed_form(deltas: np.ndarray) -> tuple[np.ndarray, list[np.ndarray], list[float]]:
    n = deltas.shape[1]
    unified, flips = np.zeros(n, np.float32), np.zeros(n, np.uint8)
    planes: list[np.ndarray] = []
    norms: list[float] = []
    scales: list[float] = []
    for session, delta in enumerate(deltas, 1):
        masks = [mask_tensor(plane, flips, i) for i, plane in enumerate(planes, 1)]
        fused = fuse_tensor(unified, flips, masks, scales, delta, session)
        unified, flips = fused.unified_N, fused.last_flip_N
        planes.append(fused.plane_B)
        norms.append(mean_abs(delta))
        scales = [rescaler(norm, mean) for norm, mean in zip(norms, fused.masked_means, strict=True)]
    return unified, [mask_tensor(plane, flips, i) for i, plane in enumerate(planes, 1)], scales


@settings(max_examples=300, deadline=None)
@given(sessions_of_deltas)
def test_the_closed_form_is_decouple_then_unify(deltas: np.ndarray) -> None:
    unified, masks, scales = in_closed_form(deltas)
    expected_unified, expected_masks, expected_scales = by_definition(deltas)
    # tau * sum(lambda) and sum(lambda * tau) may round apart where signs cancel exactly: compare where they do not
    np.testing.assert_allclose(scales, expected_scales, rtol=1e-4)
    settled = np.abs(expected_unified) > 1e-6
    np.testing.assert_allclose(unified[settled], expected_unified[settled], rtol=1e-5)
    for mask, expected in zip(masks, expected_masks, strict=True):
        np.testing.assert_array_equal(mask[settled], expected[settled])


@given(arrays(np.float32, st.integers(1, 64), elements=st.floats(-10, 10, width=32)))
def test_a_lone_task_comes_back_exactly(delta: np.ndarray) -> None:
    fused = fuse_tensor(np.zeros_like(delta), np.zeros(delta.size, np.uint8), [], [], delta, 1)
    np.testing.assert_array_equal(fused.unified_N, delta)
    if np.any(delta):
        scale = rescaler(mean_abs(delta), fused.masked_means[0])
        assert scale == pytest.approx(1.0, rel=1e-6)


@given(sessions_of_deltas)
def test_old_masks_only_lose_bits(deltas: np.ndarray) -> None:
    for t in range(1, len(deltas)):
        _, before, _ = in_closed_form(deltas[:t])
        _, after, _ = in_closed_form(deltas[: t + 1])
        for old, new in zip(before, after, strict=False):
            assert not np.any(new & ~old)


@given(sessions_of_deltas)
def test_what_a_task_keeps_has_its_mean_magnitude(deltas: np.ndarray) -> None:
    unified, masks, scales = in_closed_form(deltas)
    for delta, mask, scale in zip(deltas, masks, scales, strict=True):
        if scale:
            assert scale * masked_mean(np.abs(unified), mask) == pytest.approx(mean_abs(delta), rel=1e-6)


def test_a_task_of_which_nothing_is_left_has_scale_zero() -> None:
    assert rescaler(0.3, 0.0) == 0.0
    assert masked_mean(np.zeros(0, np.float32), np.zeros(0, np.bool_)) == 0.0
