"""The baselines: what each must restore by construction, and what it stores."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fusion.baselines import Baseline, FusedBaseline, fuse_baseline, open_baseline, task_vector
from fusion.baselines.low_rank import truncate
from fusion.baselines.ties import elect_and_merge, trim, trim_threshold
from fusion.errors import ConfigError, StateDictError
from fusion.planes import plane_bytes
from fusion.store import open_store
from fusion.tensors import TensorFile, write_tensors
from tests.fusion.vectors import SHAPES, random_base, random_expert

NAMES = ("checkpoints", "average", "task-arithmetic", "ties", "wise-ft", "emr", "bitdelta", "low-rank", "delta-come")
ELEMENTS = sum(math.prod(shape) for shape in SHAPES.values())
Fuse = Callable[..., FusedBaseline]

halves = st.floats(-4, 4, width=16)
some_vectors = st.tuples(st.integers(1, 5), st.integers(1, 40)).flatmap(
    lambda size: arrays(np.float32, size, elements=halves)
)


@pytest.fixture
def base(tmp_path: Path) -> TensorFile:
    return TensorFile(random_base(tmp_path, open_store((tmp_path / "store").as_uri()))[1])


@pytest.fixture
def fuse(base: TensorFile, tmp_path: Path) -> Fuse:
    """Fuse experts of the base, given by their seeds, with a method."""

    def run(method: Baseline, *seeds: int) -> FusedBaseline:
        experts = {f"task{i}": expert_file(tmp_path, base, f"task{i}", seed) for i, seed in enumerate(seeds)}
        return fuse_baseline(method, base, experts, tmp_path / "shelf")

    return run


def expert_file(folder: Path, base: TensorFile, task: str, seed: int) -> TensorFile:
    weights = random_expert(folder, base.path, task, seed=seed).weights
    assert isinstance(weights, Path)
    return TensorFile(weights)


def deltas(folder: Path, base: TensorFile, seeds: tuple[int, ...]) -> list[dict[str, np.ndarray]]:
    files = [expert_file(folder, base, f"task{i}", seed) for i, seed in enumerate(seeds)]
    return [{name: task_vector(base, file, name) for name in SHAPES} for file in files]


def rebuilt(fused: FusedBaseline, task: str) -> dict[str, np.ndarray]:
    """The rebuilt task vector, flat."""
    return {
        name: tensor.numpy().reshape(-1) - fused.base.float32(name).reshape(-1)
        for name, tensor in fused.tensors(task)
        if name in SHAPES
    }


@pytest.mark.parametrize("name", NAMES)
def test_every_method_gives_a_full_state_dict_in_the_bases_layout(name: str, fuse: Fuse, base: TensorFile) -> None:
    fused = fuse(open_baseline(name), 1, 2)
    tensors = dict(fused.tensors("task1"))
    assert {n: tuple(tensor.shape) for n, tensor in tensors.items()} == {n: s.shape for n, s in base.specs.items()}
    assert all(tensors[n].dtype == torch.float32 for n in base.fused_names())


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("checkpoints", {}),
        ("average", {}),
        ("task-arithmetic", {"scale": 1.0}),
        ("ties", {"density": 1.0}),
        ("wise-ft", {"alpha": 1.0}),
        ("emr", {}),
    ],
)
def test_a_lone_task_comes_back(
    name: str, settings: dict[str, float], fuse: Fuse, base: TensorFile, tmp_path: Path
) -> None:
    came_back = rebuilt(fuse(open_baseline(name, **settings), 1), "task0")
    (want,) = deltas(tmp_path, base, (1,))
    for tensor, delta_N in want.items():
        np.testing.assert_allclose(came_back[tensor], delta_N, atol=1e-6, err_msg=tensor)


def test_the_average_of_equal_experts_is_the_expert(fuse: Fuse, base: TensorFile, tmp_path: Path) -> None:
    came_back = rebuilt(fuse(open_baseline("average"), 3, 3, 3), "task2")
    for tensor, delta_N in deltas(tmp_path, base, (3,))[0].items():
        np.testing.assert_allclose(came_back[tensor], delta_N, atol=1e-6, err_msg=tensor)


def test_task_arithmetic_adds_scaled_task_vectors(fuse: Fuse, base: TensorFile, tmp_path: Path) -> None:
    came_back = rebuilt(fuse(open_baseline("task-arithmetic", scale=0.5), 1, 2), "task0")
    first, second = deltas(tmp_path, base, (1, 2))
    for tensor in SHAPES:
        np.testing.assert_allclose(came_back[tensor], 0.5 * (first[tensor] + second[tensor]), atol=1e-6)


def test_wise_ft_lies_between_the_base_and_the_tasks_own_expert(fuse: Fuse, base: TensorFile, tmp_path: Path) -> None:
    came_back = rebuilt(fuse(open_baseline("wise-ft", alpha=0.25), 1, 2), "task1")
    for tensor, delta_N in deltas(tmp_path, base, (1, 2))[1].items():
        np.testing.assert_allclose(came_back[tensor], 0.25 * delta_N, atol=1e-6, err_msg=tensor)


def test_a_model_for_all_tasks_is_the_same_for_each(fuse: Fuse) -> None:
    fused = fuse(open_baseline("ties"), 1, 2)
    first, second = dict(fused.tensors("task0")), dict(fused.tensors("task1"))
    assert all(torch.equal(first[name], second[name]) for name in first)


@settings(max_examples=200, deadline=None)
@given(arrays(np.float32, st.integers(1, 60), elements=halves), st.floats(0.01, 1), st.integers(1, 3))
def test_trimming_keeps_the_largest_of_the_whole_vector(flat: np.ndarray, density: float, num_parts: int) -> None:
    parts = [part for part in np.array_split(flat, num_parts) if part.size]
    threshold = trim_threshold(lambda: parts, density)
    keep = max(1, round(density * flat.size))
    assert threshold == np.sort(np.abs(flat))[::-1][keep - 1]
    kept = trim(flat, threshold)
    np.testing.assert_array_equal(kept, [x if abs(x) >= threshold else 0 for x in flat])


@settings(max_examples=200, deadline=None)
@given(some_vectors)
def test_ties_merges_what_agrees_with_the_elected_sign(vectors: np.ndarray) -> None:
    merged = elect_and_merge(list(vectors))
    for column, got in zip(vectors.T, merged, strict=True):
        elected = np.sign(column.sum())  # exact: halves with few digits
        agreeing = [float(x) for x in column if x * elected > 0]
        assert got == pytest.approx(np.mean(agreeing) if agreeing else 0.0, rel=1e-6)


def test_emr_follows_the_papers_formula(fuse: Fuse, base: TensorFile, tmp_path: Path) -> None:
    seeds = (1, 2, 3)
    fused = fuse(open_baseline("emr"), *seeds)
    vectors = np.stack([np.concatenate([d[name] for name in SHAPES]) for d in deltas(tmp_path, base, seeds)])
    sign = np.where(vectors.sum(0) > 0, 1, -1)
    tau = sign * np.where(vectors * sign > 0, np.abs(vectors), 0).max(0)
    for i, own in enumerate(vectors):
        mask = own * tau > 0
        want = np.abs(own).sum() / np.abs(mask * tau).sum() * mask * tau
        came_back = rebuilt(fused, f"task{i}")
        np.testing.assert_allclose(np.concatenate([came_back[name] for name in SHAPES]), want, atol=1e-6)


def test_bitdelta_keeps_the_sign_and_the_mean_magnitude_of_every_tensor(
    fuse: Fuse, base: TensorFile, tmp_path: Path
) -> None:
    came_back = rebuilt(fuse(open_baseline("bitdelta"), 1, 2), "task1")
    for tensor, delta_N in deltas(tmp_path, base, (1, 2))[1].items():
        want = np.where(delta_N > 0, 1, -1) * np.abs(delta_N).mean()
        np.testing.assert_allclose(came_back[tensor], want, atol=1e-6, err_msg=tensor)


def test_full_rank_restores_the_task_vector_to_half_precision(fuse: Fuse, base: TensorFile, tmp_path: Path) -> None:
    came_back = rebuilt(fuse(open_baseline("low-rank", rank=64), 1), "task0")
    for tensor, delta_N in deltas(tmp_path, base, (1,))[0].items():
        np.testing.assert_allclose(came_back[tensor], delta_N.astype(np.float16), atol=1e-6, err_msg=tensor)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_a_matrix_of_low_rank_survives_truncation_to_that_rank(rank: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    matrix = (random.standard_normal((12, rank)) @ random.standard_normal((rank, 20))).astype(np.float32)
    left, right = truncate(matrix, rank)
    assert left.dtype == right.dtype == np.float16
    assert left.shape == (12, rank)
    product = left.astype(np.float32) @ right.astype(np.float32)
    assert np.linalg.norm(product - matrix) <= 2e-3 * np.linalg.norm(matrix)


def test_rows_and_tensors_that_never_moved_cost_an_index_or_nothing(base: TensorFile, tmp_path: Path) -> None:
    tensors = {n: base.tensor(n).clone() for n in base.specs}
    tensors["text.proj"][[2, 5]] += 0.25
    write_tensors(tmp_path / "two-rows.safetensors", tensors)
    experts = {"t": TensorFile(tmp_path / "two-rows.safetensors")}
    fused = fuse_baseline(open_baseline("low-rank", rank=1), base, experts, tmp_path / "shelf")
    columns = base.specs["text.proj"].elements // base.specs["text.proj"].num_rows
    assert fused.shelf.task_bytes("t") == 2 * 4 + 2 * (2 + columns)
    want = np.zeros((base.specs["text.proj"].num_rows, columns), np.float32)
    want[[2, 5]] = 0.25
    np.testing.assert_allclose(rebuilt(fused, "t")["text.proj"].reshape(want.shape), want, atol=1e-3)


def test_more_bits_come_nearer_and_keep_within_their_budget(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    large = {"m": torch.zeros(96, 128)}
    write_tensors(tmp_path / "base-large.safetensors", large)
    matrix = (random.standard_normal((96, 60)) / np.arange(1, 61)) @ random.standard_normal((60, 128))
    write_tensors(tmp_path / "large.safetensors", {"m": torch.from_numpy(matrix.astype(np.float32))})
    theta, expert = (TensorFile(tmp_path / f"{n}.safetensors") for n in ("base-large", "large"))
    errors = []
    for bits in (0.3, 1.0, 3.0):
        fused = fuse_baseline(open_baseline("delta-come", bits=bits), theta, {"t": expert}, tmp_path / f"bits{bits}")
        assert fused.shelf.task_bytes("t") <= bits * matrix.size / 8 + 3 * 8
        (weights,) = (values for _, values in fused.tensors("t"))
        errors.append(float(np.linalg.norm(weights.numpy() - matrix) / np.linalg.norm(matrix)))
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.15


def test_a_higher_rank_comes_nearer(fuse: Fuse, base: TensorFile, tmp_path: Path) -> None:
    (own,) = deltas(tmp_path, base, (1,))
    errors = []
    for rank in (1, 3, 5):
        fused = fuse_baseline(
            open_baseline("low-rank", rank=rank),
            base,
            {"t": expert_file(tmp_path, base, "t", 1)},
            tmp_path / f"r{rank}",
        )
        errors.append(np.linalg.norm(rebuilt(fused, "t")["text.proj"] - own["text.proj"]))
    assert errors[0] > errors[1] > errors[2]


@pytest.mark.parametrize(
    ("name", "per_task", "shared"),
    [
        ("checkpoints", 4 * ELEMENTS, 0),
        ("wise-ft", 4 * ELEMENTS, 0),
        ("average", 0, 4 * ELEMENTS + 4 * 5 + 8),
        ("ties", 0, 4 * ELEMENTS + 4 * 5 + 8),
        ("emr", sum(plane_bytes(math.prod(shape)) for shape in SHAPES.values()) + 4, 4 * ELEMENTS),
        ("bitdelta", sum(plane_bytes(math.prod(shape)) + 4 for shape in SHAPES.values()), 0),
        ("low-rank", 2 * (2 * (4 + 27) + 2 * (19 + 7) + 13 + 1), 0),
    ],
)
def test_a_method_reports_what_it_stores_for_a_task_and_for_all(
    name: str, per_task: int, shared: int, fuse: Fuse
) -> None:
    fused = fuse(open_baseline(name, **({"rank": 2} if name == "low-rank" else {})), 1, 2, 3)
    assert [fused.shelf.task_bytes(f"task{i}") for i in range(3)] == [per_task] * 3
    assert fused.shelf.shared_bytes == shared


@pytest.mark.parametrize("name", NAMES)
def test_batch_norm_statistics_are_the_bases_or_the_experts_and_never_merged(
    name: str, base: TensorFile, tmp_path: Path
) -> None:
    experts = {}
    for i in range(2):
        tensors = {n: base.tensor(n).clone() for n in base.specs}
        tensors["bn.running_mean"] += i
        tensors["bn.num_batches_tracked"] += i
        write_tensors(tmp_path / f"bn{i}.safetensors", tensors)
        experts[f"task{i}"] = TensorFile(tmp_path / f"bn{i}.safetensors")
    fused = fuse_baseline(open_baseline(name), base, experts, tmp_path / "shelf")
    moved = 0 if fused.method.one_model else 1
    tensors = dict(fused.tensors("task1"))
    assert torch.equal(tensors["bn.running_mean"], base.tensor("bn.running_mean") + moved)
    assert torch.equal(tensors["bn.num_batches_tracked"], base.tensor("bn.num_batches_tracked") + moved)


@pytest.mark.parametrize("name", NAMES)
def test_an_expert_that_is_the_base_stays_the_base(name: str, base: TensorFile, tmp_path: Path) -> None:
    fused = fuse_baseline(open_baseline(name), base, {"same": base}, tmp_path / "shelf")
    for tensor, weights in fused.tensors("same"):
        assert torch.equal(weights, base.tensor(tensor)), tensor


def test_an_unknown_method_or_setting_and_a_foreign_expert_are_refused(base: TensorFile, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'tiess' is unknown: choose from checkpoints, average"):
        open_baseline("tiess")
    with pytest.raises(ConfigError, match=r"density is 0"):
        open_baseline("ties", density=0)
    with pytest.raises(ConfigError, match=r"rank is 0"):
        open_baseline("low-rank", rank=0)
    with pytest.raises(ConfigError, match=r"bits is 0"):
        open_baseline("delta-come", bits=0)
    with pytest.raises(ConfigError, match=r"no expert"):
        fuse_baseline(open_baseline("average"), base, {}, tmp_path / "none")
    write_tensors(tmp_path / "other.safetensors", {"x": torch.zeros(2)})
    with pytest.raises(StateDictError, match=r"does not match the base"):
        fuse_baseline(open_baseline("emr"), base, {"x": TensorFile(tmp_path / "other.safetensors")}, tmp_path / "other")


@pytest.mark.parametrize("name", [name for name in NAMES if name != "checkpoints"])
def test_an_expert_that_is_not_finite_is_refused(name: str, base: TensorFile, tmp_path: Path) -> None:
    tensors = {n: base.tensor(n).clone() for n in base.specs}
    tensors["text.proj"][3, 2] = math.inf
    write_tensors(tmp_path / "diverged.safetensors", tensors)
    with pytest.raises(StateDictError, match=r"diverged\.safetensors: tensor 'text.proj' holds NaN or infinite"):
        fuse_baseline(open_baseline(name), base, {"x": TensorFile(tmp_path / "diverged.safetensors")}, tmp_path / "s")
