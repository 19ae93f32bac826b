"""Mode `signed`: what comes back, what stays zero, what never changes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fusion.decouple import decoupled_tensors
from fusion.fuse import fuse_experts
from fusion.kernels import LEVEL_BINS, LEVEL_BINS_PER_UNIT
from fusion.kernels.cpu import CpuKernels
from fusion.modes.signed import OpenProfile, fit_levels, row_means
from fusion.store import Store
from fusion.tensors import TensorFile, TensorSpec
from tests.fusion.vectors import SHAPES, cache_of, cosine, random_base, random_expert

KERNELS = CpuKernels()


def rows_of(delta: np.ndarray) -> np.ndarray:
    """Where each row of a matrix begins, then its size."""
    return np.arange(delta.shape[0] + 1) * delta.shape[1]


def open_profile(delta: np.ndarray) -> np.ndarray:
    """g of a matrix alone, float16 [N]."""
    profile = OpenProfile(KERNELS, rows_of(delta))
    profile.add(delta.reshape(-1))
    return profile.close()


def round_trip(delta: np.ndarray, profile: np.ndarray, bits: int) -> np.ndarray:
    """A matrix encoded and decoded, flat."""
    flat, starts, g = delta.reshape(-1), rows_of(delta), profile.astype(np.float32)
    scales = row_means(KERNELS, flat, starts)
    levels = np.ones(1, np.float32)
    if bits > 1:
        levels = fit_levels(KERNELS.level_histogram(flat, g, scales, starts, step=1), 2 ** (bits - 1))
    planes = KERNELS.encode(flat, g, scales, starts, levels, bits=bits)
    return KERNELS.decode(planes, g, scales, levels, starts)


def histogram_of(ratio: np.ndarray, weight: np.ndarray) -> np.ndarray:
    bins = np.minimum(ratio * LEVEL_BINS_PER_UNIT, LEVEL_BINS - 1).astype(int)
    return np.stack([np.bincount(bins, w, minlength=LEVEL_BINS) for w in (weight, weight * ratio)], axis=1)


deltas_of_rows = st.integers(1, 6).flatmap(
    lambda rows: st.integers(1, 30).flatmap(
        lambda width: arrays(np.float32, (rows, width), elements=st.floats(-4, 4, width=16))
    )
)


@settings(max_examples=200, deadline=None)
@given(deltas_of_rows, st.integers(1, 4))
def test_signs_come_back_and_rows_that_never_moved_stay_zero(delta: np.ndarray, bits: int) -> None:
    flat = delta.reshape(-1)
    decoded = round_trip(delta, open_profile(delta), bits)
    assert decoded.dtype == np.float32
    moved = (row_means(KERNELS, flat, rows_of(delta)) > 0).repeat(delta.shape[1])
    assert not decoded[~moved].any()
    told = moved & (np.abs(decoded) > 0) & (flat != 0)
    np.testing.assert_array_equal(np.sign(decoded[told]), np.sign(flat[told]))


@settings(max_examples=100, deadline=None)
@given(deltas_of_rows)
def test_a_profile_is_positive_finite_and_one_where_no_task_moved(delta: np.ndarray) -> None:
    profile = open_profile(delta).astype(np.float32).reshape(delta.shape)
    assert np.isfinite(profile).all()
    assert (profile > 0).all()
    assert (profile[np.abs(delta).max(axis=1) == 0] == 1).all()


def test_a_row_with_one_huge_element_does_not_overflow_half_precision() -> None:
    delta = np.zeros((1, 1_000_000), np.float32)
    delta[0, 3] = 1.0
    assert np.isfinite(open_profile(delta).astype(np.float32)).all()


@pytest.mark.parametrize(("bits", "floor"), [(1, 0.78), (2, 0.93), (3, 0.98), (4, 0.99)])
def test_more_bits_bring_the_task_vector_closer(bits: int, floor: float) -> None:
    random = np.random.default_rng(0)
    delta = random.standard_normal((64, 256)).astype(np.float32)
    assert cosine(round_trip(delta, np.ones(delta.size, np.float16), bits), delta.reshape(-1)) > floor


def test_levels_of_two_magnitudes_are_these_magnitudes() -> None:
    ratios = np.array([0.5, 0.5, 3.0, 3.0, 3.0], np.float32)
    np.testing.assert_allclose(fit_levels(histogram_of(ratios, np.ones(5)), 2), [0.5, 3.0], rtol=1e-6)


def test_levels_beat_any_shifted_pair_in_weighted_squared_error() -> None:
    random = np.random.default_rng(1)
    ratio, weight = random.gamma(2.0, 0.5, 20_000).astype(np.float32), random.random(20_000).astype(np.float32)

    def error(levels: np.ndarray) -> float:
        nearest = np.abs(ratio[:, None] - levels).min(1)
        return float((weight * nearest**2).sum())

    levels = fit_levels(histogram_of(ratio, weight), 2)
    for shift in (-0.05, 0.05):
        for which in (0, 1):
            moved = levels.copy()
            moved[which] += shift
            assert error(levels) < error(moved)


def test_vectors_and_scalars_have_one_row() -> None:
    assert [TensorSpec("F32", shape).num_rows for shape in ((), (7,), (0, 4), (5, 3, 2))] == [1, 1, 1, 5]


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_old_tasks_of_more_than_one_bit_decouple_bit_for_bit_as_before(
    bits: int, local_store: Store, tmp_path: Path
) -> None:
    base, path = random_base(tmp_path, local_store)
    cache = cache_of(local_store, tmp_path)
    mode = {"name": "signed", "bits": bits}
    first = fuse_experts(cache, base, [random_expert(tmp_path, path, "a", seed=1)], mode=mode).manifest
    before = dict(decoupled_tensors(cache, first, "a"))
    for k in range(4):
        newest = fuse_experts(cache, base, [random_expert(tmp_path, path, f"t{k}", seed=9 + k)], mode=mode).manifest
    after = dict(decoupled_tensors(cache, newest, "a"))
    same = all(np.array_equal(before[name], after[name]) for name in before)
    assert same == (bits > 1), "one bit follows the newest profile, more bits stay with their own"
    original = TensorFile(tmp_path / "a-1.safetensors")
    assert all(cosine_of(after[name], original.float32(name), path, name) > 0.5 for name in ("text.proj",))


def cosine_of(decoupled: object, original: np.ndarray, base: Path, name: str) -> float:
    theta = TensorFile(base).float32(name)
    return cosine((np.asarray(decoupled) - theta).reshape(-1), (original - theta).reshape(-1))


def test_a_profile_opens_at_one_two_four_and_eight_tasks(local_store: Store, tmp_path: Path) -> None:
    base, path = random_base(tmp_path, local_store)
    cache = cache_of(local_store, tmp_path)
    seen = []
    for k in range(9):
        expert = random_expert(tmp_path, path, f"t{k}", seed=k)
        manifest = fuse_experts(cache, base, [expert], mode={"name": "signed", "bits": 2}).manifest
        seen.append(sorted(int(name.removeprefix("profile/")) for name in manifest.state.shared))
    assert seen[:4] == [[1], [1, 2], [1, 2], [1, 2, 4]]
    assert seen[-1] == [1, 2, 4, 8]
    assert set(SHAPES) == set(cache.tensors(manifest.state.shared["profile/1"]).specs)


def test_adding_a_task_writes_its_own_record_and_trigger_and_nothing_else(local_store: Store, tmp_path: Path) -> None:
    base, path = random_base(tmp_path, local_store)
    cache = cache_of(local_store, tmp_path)
    mode = {"name": "signed", "bits": 2}
    fuse_experts(cache, base, [random_expert(tmp_path, path, f"t{k}", seed=k) for k in range(2)], mode=mode)
    before = {info.key for info in local_store.list("")}
    fuse_experts(cache, base, [random_expert(tmp_path, path, "t2", seed=2)], mode=mode)
    new = {info.key for info in local_store.list("")} - before
    assert sorted(key.split("/")[0] for key in new) == ["blobs", "blobs", "versions"]
