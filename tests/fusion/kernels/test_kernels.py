"""Kernels against the equations in plain numpy, and the two implementations against each other, bit for bit."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion.errors import ConfigError
from fusion.kernels import Kernels, StateDtype, open_kernels
from fusion.kernels.cpu import CpuKernels
from fusion.kernels.device import DeviceKernels
from fusion.modes.signed import row_means
from fusion.planes import pack, unpack
from tests.fusion import reference

CPU = CpuKernels()
BOTH = pytest.mark.parametrize("kernels", [CPU, DeviceKernels("cpu")], ids=["numba", "torch"])
DTYPES: tuple[StateDtype, ...] = ("float32", "float16", "bfloat16")
MAGNITUDES = np.array([-2.0, -1.0, -0.5, -1e-6, -3e-8, 0.0, 0.0, 1e-6, 0.1, 0.5, 1.0, 2.0], np.float32)


def random_values(random: np.random.Generator, size: int) -> np.ndarray:
    """Ordinary numbers with ties, zeros and float16 subnormals among them: where implementations may differ."""
    ordinary = random.standard_normal(size).astype(np.float32)
    return np.where(random.random(size) < 0.5, random.choice(MAGNITUDES, size), ordinary)


def chunk(seed: int, *, num_tasks: int, size: int, num_segments: int = 1, sessions: int = 0) -> dict[str, Any]:
    """A state in the middle of its life, of `num_tasks` tasks, and a new task vector."""
    random = np.random.default_rng(seed)
    inner = np.sort(random.integers(0, size + 1, num_segments - 1))
    return {
        "tau_N": random_values(random, size),
        "last_flip_N": random.integers(0, max(sessions, num_tasks) + 1, size).astype(
            np.uint8 if max(sessions, num_tasks) < 256 else np.uint16
        ),
        "delta_N": random_values(random, size),
        "planes_TB": np.stack(
            [pack(random.random(size) < 0.5) for _ in range(num_tasks)] or [np.zeros((size + 7) // 8, np.uint8)]
        )[:num_tasks],
        "sessions_T": np.arange(1, num_tasks + 1),
        "scales_ST": random.random((num_segments, num_tasks)).astype(np.float32) * 2,
        "starts_S": np.concatenate([[0], inner, [size]]).astype(np.int64),
    }


def masks_of(state: dict[str, Any]) -> list[np.ndarray]:
    size = state["tau_N"].size
    return [
        unpack(plane, size) & (state["last_flip_N"] <= session)
        for plane, session in zip(state["planes_TB"], state["sessions_T"], strict=True)
    ]


def run(kernels: Kernels, state: dict[str, Any], session: int, dtype: StateDtype) -> tuple[np.ndarray, ...]:
    tau, flips = state["tau_N"].copy(), state["last_flip_N"].copy()
    rest = {key: value for key, value in state.items() if key not in ("tau_N", "last_flip_N")}
    return tau, flips, *kernels.unify_next(tau, flips, **rest, session=session, dtype=dtype)


sizes = st.sampled_from([1, 7, 8, 9, 63, 64, 65, 1000, 4095, 4096, 4097, 9001])


@BOTH
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), num_tasks=st.integers(0, 19), size=sizes)
def test_a_session_is_the_closed_form_in_every_bit(kernels: Kernels, seed: int, num_tasks: int, size: int) -> None:
    state = chunk(seed, num_tasks=num_tasks, size=size)
    tau, flips, plane, masked, norms, _ = run(kernels, state, num_tasks + 1, "float32")
    masks = masks_of(state)
    expected_tau, expected_masks = reference.one_session(
        state["tau_N"], masks, state["scales_ST"][0].tolist(), state["delta_N"]
    )
    np.testing.assert_array_equal(tau, expected_tau)
    np.testing.assert_array_equal(unpack(plane, size), expected_masks[-1])
    now = [unpack(p, size) & (flips <= s) for p, s in zip(state["planes_TB"], state["sessions_T"], strict=True)]
    for mask, expected in zip(now, expected_masks[:-1], strict=True):
        np.testing.assert_array_equal(mask & (tau != 0), expected & (tau != 0))
        assert not np.any(mask & (tau == 0)), "a bit is lost where tau becomes 0"
    wanted = [np.abs(expected_tau[mask]).sum(dtype=np.float64) for mask in expected_masks]
    np.testing.assert_allclose(masked[0], wanted, rtol=1e-12, atol=1e-300)
    np.testing.assert_allclose(norms[0], np.abs(state["delta_N"]).sum(dtype=np.float64), rtol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), num_tasks=st.integers(0, 19), size=sizes, num_segments=st.integers(1, 6))
def test_both_kernels_give_the_same_bits(
    dtype: StateDtype, seed: int, num_tasks: int, size: int, num_segments: int
) -> None:
    state = chunk(seed, num_tasks=num_tasks, size=size, num_segments=num_segments)
    compiled, by_torch = (run(k, state, num_tasks + 1, dtype) for k in (CPU, DeviceKernels("cpu")))
    for name, one, other in zip(("tau", "last_flip", "plane"), compiled, by_torch, strict=False):
        np.testing.assert_array_equal(one, other, err_msg=name)
    for one, other in zip(compiled[3:], by_torch[3:], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-300)


@BOTH
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_rounded_tau_is_what_numpy_or_torch_rounds_to(kernels: Kernels, dtype: StateDtype) -> None:
    import torch

    random = np.random.default_rng(0)
    bits = random.integers(0, 2**32, 200_000, dtype=np.uint32)
    delta = bits.view(np.float32)
    delta = np.concatenate([delta[np.isfinite(delta)], MAGNITUDES, np.float32([65503, 65520, 1e5, 6.1e-5, 5.96e-8])])
    state = chunk(0, num_tasks=0, size=delta.size) | {"tau_N": np.zeros_like(delta), "delta_N": delta}
    tau, *_ = run(kernels, state, 1, dtype)
    if dtype == "float16":
        with np.errstate(over="ignore"):
            expected = np.clip(delta, -65504, 65504).astype(np.float16).astype(np.float32)
    else:
        finite = torch.finfo(torch.bfloat16).max
        expected = torch.from_numpy(delta).clamp(-finite, finite).bfloat16().float().numpy()
    np.testing.assert_array_equal(tau, expected)


@BOTH
def test_more_than_255_sessions_take_two_bytes_of_last_flip(kernels: Kernels) -> None:
    state = chunk(3, num_tasks=300, size=777)
    tau, flips, plane, masked, _, _ = run(kernels, state, 301, "float32")
    expected_tau, expected_masks = reference.one_session(
        state["tau_N"], masks_of(state), state["scales_ST"][0].tolist(), state["delta_N"]
    )
    assert flips.dtype == np.uint16
    np.testing.assert_array_equal(tau, expected_tau)
    np.testing.assert_array_equal(unpack(plane, 777), expected_masks[-1])
    wanted = [np.abs(expected_tau[mask]).sum(dtype=np.float64) for mask in expected_masks]
    np.testing.assert_allclose(masked[0], wanted, rtol=1e-12, atol=1e-300)


@BOTH
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), num_tasks=st.integers(1, 12), size=sizes)
def test_joint_is_the_definition(kernels: Kernels, seed: int, num_tasks: int, size: int) -> None:
    random = np.random.default_rng(seed)
    deltas = np.stack([random_values(random, size) for _ in range(num_tasks)])
    tau, planes, masked, norms, _ = kernels.unify_all(deltas, np.array([0, size]), dtype="float32")
    expected_tau, masks = reference.unify(list(deltas))
    np.testing.assert_array_equal(tau, expected_tau)
    for plane, mask in zip(planes, masks, strict=True):
        np.testing.assert_array_equal(unpack(plane, size), mask)
    wanted = [np.abs(expected_tau[mask]).sum(dtype=np.float64) for mask in masks]
    np.testing.assert_allclose(masked[0], wanted, rtol=1e-12, atol=1e-300)
    np.testing.assert_allclose(norms[0], np.abs(deltas).sum(axis=1, dtype=np.float64), rtol=1e-12)


@BOTH
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), num_tasks=st.integers(1, 10), size=sizes, num_segments=st.integers(1, 5))
def test_decoupling_and_masked_sums_use_the_masks_without_their_lost_bits(
    kernels: Kernels, seed: int, num_tasks: int, size: int, num_segments: int
) -> None:
    state = chunk(seed, num_tasks=num_tasks, size=size, num_segments=num_segments)
    tau, flips, starts = state["tau_N"], state["last_flip_N"], state["starts_S"]
    sums = kernels.masked_sums(tau, flips, state["planes_TB"], state["sessions_T"], starts)
    for t, mask in enumerate(masks_of(state)):
        scales = state["scales_ST"][:, t].copy()
        delta = kernels.decouple(tau, flips, state["planes_TB"][t], t + 1, scales, starts)
        per_element = np.repeat(scales, np.diff(starts))
        np.testing.assert_array_equal(delta, np.where(mask, per_element * tau, np.float32(0)))
        wanted = [np.abs(tau[a:b][mask[a:b]]).sum(dtype=np.float64) for a, b in pairwise(starts)]
        np.testing.assert_allclose(sums[:, t], wanted, rtol=1e-12, atol=1e-300)
    unflipped = kernels.decouple(tau, None, state["planes_TB"][0], 1, np.ones(num_segments, np.float32), starts)
    np.testing.assert_array_equal(unflipped, np.where(unpack(state["planes_TB"][0], size), tau, np.float32(0)))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), size=sizes, num_segments=st.integers(1, 5), bits=st.integers(1, 4))
def test_both_kernels_encode_and_decode_signs_alike(seed: int, size: int, num_segments: int, bits: int) -> None:
    random = np.random.default_rng(seed)
    starts = chunk(seed, num_tasks=0, size=size, num_segments=num_segments)["starts_S"]
    delta = random_values(random, size)
    profile = random.choice(np.float32([1e-7, 0.25, 1.0, 3.0]), size)
    levels = np.sort(random.random(2 ** (bits - 1))).astype(np.float32)
    found = []
    for kernels in (CPU, DeviceKernels("cpu")):
        scales = row_means(kernels, delta, starts)
        planes = kernels.encode(delta, profile, scales, starts, levels, bits=bits)
        decoded = kernels.decode(planes, profile, scales, levels, starts)
        total = np.ones(size, np.float32)
        kernels.add_to_profile(total, decoded, scales, starts)
        histogram = kernels.level_histogram(delta, profile, scales, starts, step=1 + seed % 3)
        found.append((planes, decoded, total, histogram, kernels.sum_abs(delta, starts), scales))
    for one, other in zip(found[0][:3], found[1][:3], strict=True):
        np.testing.assert_array_equal(one, other)
    for one, other in zip(found[0][3:], found[1][3:], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-300)


def test_a_device_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ConfigError, match="can't be used"):
        open_kernels("no-such-device")
