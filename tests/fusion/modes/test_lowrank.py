"""Mode `lowrank`: decoded to the same bits everywhere, near what was encoded, and small."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from fusion.decouple import decoupled_tensors, read_record
from fusion.errors import ConfigError, StateDictError
from fusion.factors.algebra import CpuAlgebra, DeviceAlgebra
from fusion.factors.components import Components, encode
from fusion.factors.symbols import SymbolReader, SymbolWriter
from fusion.fidelity import measure_fidelity
from fusion.fuse import ExpertToFuse, fuse_experts, rebuild_from_archive
from fusion.modes.lowrank import Kind
from fusion.store import Store, open_store
from fusion.store.node_cache import NodeCache
from fusion.tensors import TensorFile, write_tensors
from fusion.versions.bases import put_base
from fusion.versions.edits import remove_task
from fusion.versions.history import Versions
from tests.fusion.vectors import cache_of, publish_each

CPU = CpuAlgebra()
LOWRANK = {"name": "lowrank"}
F32, F64 = np.dtype(np.float32), np.dtype(np.float64)
matrices = arrays(np.float32, array_shapes(min_dims=2, max_dims=2, max_side=24), elements=st.floats(-4, 4, width=16))


def of_rank(rank: int, rows: int, columns: int, *, seed: int = 0) -> np.ndarray:
    dice = np.random.default_rng(seed)
    product = dice.normal(size=(rows, rank)) @ dice.normal(size=(rank, columns))
    return (0.01 * product).astype(np.float32)


def whole(found: Components, dtype: np.dtype[Any] = F64, algebra: Any = CPU) -> np.ndarray:
    return found.rows(0, found.left.shape[1], dtype, algebra)


@settings(max_examples=200, deadline=None)
@given(matrices, st.floats(0.01, 4))
def test_components_decode_to_the_same_bits_in_any_order_and_precision(matrix: np.ndarray, quality: float) -> None:
    rms = float(np.sqrt(np.square(matrix, dtype=np.float64).mean()))
    found = encode(matrix, quality * rms, CPU) if rms else None
    if found is None:
        return
    bits = whole(found).tobytes()
    dtype = found.dtype()
    assert dtype is not None
    order = np.random.default_rng(0).permutation(len(found.left))
    shuffled = Components(found.left[order], found.right[order], found.mantissas[order], found.exponents[order])
    assert whole(found, dtype).tobytes() == bits
    assert whole(shuffled, dtype).tobytes() == bits
    assert whole(found, dtype, DeviceAlgebra("cpu")).tobytes() == bits
    half = found.left.shape[1] // 2
    pieces = [found.rows(0, half, dtype, CPU), found.rows(half, found.left.shape[1], dtype, CPU)]
    assert np.concatenate(pieces).tobytes() == bits
    assert np.linalg.norm(matrix - whole(found)) <= np.linalg.norm(matrix) * 1.0001, "worse than nothing"


def test_a_matrix_whose_components_all_round_to_nothing_has_none() -> None:
    assert encode(np.ones((4, 1), np.float32), 2.0, CPU) is None


@settings(max_examples=300, deadline=None)
@given(st.lists(arrays(np.int32, st.integers(0, 40), elements=st.integers(-(1 << 31) + 1, (1 << 31) - 1)), max_size=8))
def test_symbols_come_back_in_the_order_in_which_they_were_added(runs: list[np.ndarray]) -> None:
    writer = SymbolWriter()
    scaled = [run >> (8 * (number % 4)) for number, run in enumerate(runs)]
    kinds = [writer.add(run) for run in scaled]
    reader = SymbolReader(writer.streams(), "trigger")
    for kind, run in zip(kinds, scaled, strict=True):
        np.testing.assert_array_equal(reader.take(kind, run.size), run)


def test_damaged_symbols_are_refused() -> None:
    writer = SymbolWriter()
    kind = writer.add(np.arange(-9, 9, dtype=np.int32))
    (stream,) = writer.streams().values()
    with pytest.raises(StateDictError, match=r"trigger: class .* ends early"):
        SymbolReader({kind: stream}, "trigger").take(kind, 19)
    with pytest.raises(StateDictError, match="can't be read"):
        SymbolReader({kind: stream[:-4]}, "trigger")


@pytest.mark.parametrize(("left", "dtype"), [(1 << 10, F32), (1 << 20, F64), (1 << 30, None)])
def test_sums_that_float32_can_not_hold_are_found_and_decoded_in_float64(left: int, dtype: Any) -> None:
    dice = np.random.default_rng(0)
    found = Components(
        left=dice.integers(left, 2 * left, (3, 5), np.int32),
        right=dice.integers(900, 1000, (3, 7), np.int32) * (1 if left < 1 << 30 else 10000),
        mantissas=np.array([15, 15, 15], np.int32),
        exponents=np.array([-40, -40, -40], np.int32),
    )
    if left == 1 << 10:
        found = replace(found, right=found.right >> 6)
    assert found.dtype() == dtype
    if dtype == F64:
        exact = sum(
            15 * u[:, None].astype(object) * v[None].astype(object)
            for u, v in zip(found.left, found.right, strict=True)
        )
        assert (whole(found) == np.ldexp(exact.astype(np.float64), -40).astype(np.float32)).all()
        assert (whole(found, F32) != whole(found)).any(), "float32 sums would have been silently wrong"


@pytest.mark.parametrize("shape", [(160, 160), (40, 300), (300, 40)])
@pytest.mark.parametrize("rank", [1, 4, 16])
def test_a_vector_of_low_rank_keeps_its_rank(rank: int, shape: tuple[int, int]) -> None:
    matrix = of_rank(rank, *shape)
    found = encode(matrix, 0.005 * float(np.sqrt((matrix**2).mean())), CPU)
    assert found is not None
    assert len(found.left) == rank
    assert np.linalg.norm(matrix - whole(found)) < 1e-3 * np.linalg.norm(matrix)


def base_of(folder: Path, store: Store) -> tuple[Any, dict[str, torch.Tensor]]:
    dice = torch.Generator().manual_seed(0)
    tensors = {
        "matrix": torch.randn(64, 40, generator=dice),
        "conv.weight": torch.randn(12, 5, 3, 3, generator=dice),
        "depthwise.weight": torch.randn(30, 1, 3, 3, generator=dice),
        "tokens": torch.randn(500, 16, generator=dice),
        "vector": torch.randn(13, generator=dice),
        "column": torch.randn(9, 1, generator=dice),
        "row": torch.randn(1, 9, generator=dice),
        "pair": torch.randn(2, 2, generator=dice),
        "scalar": torch.randn((), generator=dice),
        "empty": torch.zeros(0, 4),
        "still": torch.randn(6, 6, generator=dice),
        "bn.running_mean": torch.randn(5, generator=dice),
    }
    write_tensors(folder / "base.safetensors", tensors)
    return put_base(store, folder / "base.safetensors"), tensors


def expert_of(folder: Path, base: Mapping[str, torch.Tensor], **deltas: torch.Tensor) -> Path:
    path = folder / "expert.safetensors"
    write_tensors(path, {name: tensor + deltas.get(name, torch.zeros(())) for name, tensor in base.items()})
    return path


def moved(base: Mapping[str, torch.Tensor], *, seed: int = 1, scale: float = 0.01) -> dict[str, torch.Tensor]:
    dice = torch.Generator().manual_seed(seed)
    found = {n: scale * torch.randn(t.shape, generator=dice) for n, t in base.items() if n not in ("still", "tokens")}
    found["tokens"] = torch.zeros(500, 16)
    found["tokens"][[3, 77, 499]] = scale * torch.randn(3, 16, generator=dice)
    return found


def trigger_of(store: Store, folder: Path, expert: Path, base: Any, mode: Mapping[str, Any] = LOWRANK) -> Any:
    cache = cache_of(store, folder)
    fused = fuse_experts(cache, base, [ExpertToFuse("task", expert)], mode=mode, replace=True)
    record = read_record(cache, fused.manifest, "task")
    assert record.trigger is not None
    return fused.manifest, cache.tensors(record.trigger)


def test_every_kind_of_tensor_is_kept_and_its_error_recorded(local_store: Store, tmp_path: Path) -> None:
    base, tensors = base_of(tmp_path, local_store)
    expert = expert_of(tmp_path, tensors, **moved(tensors))
    manifest, trigger = trigger_of(local_store, tmp_path, expert, base, {**LOWRANK, "quality": 0.3})
    names = TensorFile(expert).fused_names()
    kinds = dict(zip(names, map(Kind, trigger.read("kind").tolist()), strict=True))
    assert kinds == {
        "matrix": Kind.COMPONENTS,
        "conv.weight": Kind.COMPONENTS,
        "depthwise.weight": Kind.GRID,
        "tokens": Kind.ROWS,
        "vector": Kind.GRID,
        "column": Kind.COMPONENTS,
        "row": Kind.COMPONENTS,
        "pair": Kind.COMPONENTS,
        "scalar": Kind.GRID,
        "empty": Kind.ZERO,
        "still": Kind.ZERO,
    }
    np.testing.assert_array_equal(trigger.read("row"), [3, 77, 499])
    decoded = dict(decoupled_tensors(cache_of(local_store, tmp_path), manifest, "task"))
    wanted = TensorFile(expert)
    assert torch.equal(decoded["bn.running_mean"], wanted.tensor("bn.running_mean"))
    assert torch.equal(decoded["still"], tensors["still"])
    for name, error in zip(names, trigger.read("error").tolist(), strict=True):
        found = (decoded[name] - wanted.tensor(name)).double().norm().item()
        assert found == pytest.approx(error, rel=1e-3, abs=1e-6), name
        if kinds[name] == Kind.COMPONENTS:
            assert found <= 0.5 * (wanted.tensor(name) - tensors[name]).double().norm().item(), name
        else:
            step = 2.0 ** int(trigger.read("step")[names.index(name)])
            apart = (decoded[name] - wanted.tensor(name)).abs().flatten().tolist()
            assert max(apart, default=0.0) <= 0.5 * step + 1e-6, name


@pytest.mark.parametrize(
    "delta",
    [
        torch.zeros(64, 40),
        1e-30 * torch.randn(64, 40),
        1e30 * torch.randn(64, 40),
        torch.eye(64, 40),
        torch.ones(64, 40),
    ],
    ids=["zero", "tiny", "huge", "spikes", "rank one"],
)
def test_matrices_of_any_size_come_back(delta: torch.Tensor, local_store: Store, tmp_path: Path) -> None:
    zero = {"matrix": torch.zeros(64, 40), "still": torch.zeros(3)}
    write_tensors(tmp_path / "base.safetensors", zero)
    base = put_base(local_store, tmp_path / "base.safetensors")
    manifest, _ = trigger_of(
        local_store, tmp_path, expert_of(tmp_path, zero, matrix=delta), base, {**LOWRANK, "quality": 0.1}
    )
    found = dict(decoupled_tensors(cache_of(local_store, tmp_path), manifest, "task"))["matrix"]
    assert torch.isfinite(found).all()
    assert (found - delta).double().norm() <= 0.1 * delta.double().norm()


def test_one_huge_value_among_small_ones_is_kept_as_it_is(local_store: Store, tmp_path: Path) -> None:
    base, tensors = base_of(tmp_path, local_store)
    deltas = moved(tensors)
    deltas["vector"] = torch.full((13,), 1e12)
    manifest, trigger = trigger_of(local_store, tmp_path, expert_of(tmp_path, tensors, **deltas), base)
    assert Kind.RAW in trigger.read("kind").tolist()
    found = dict(decoupled_tensors(cache_of(local_store, tmp_path), manifest, "task"))["vector"]
    assert torch.equal(found, tensors["vector"] + (tensors["vector"] + deltas["vector"] - tensors["vector"]))


def test_finer_steps_cost_bytes_and_max_bytes_holds(tmp_path: Path) -> None:
    def bytes_and_error(**options: Any) -> tuple[int, float]:
        local_store = open_store(str(tmp_path / "-".join(map(str, options.values()))))
        base, tensors = base_of(tmp_path, local_store)
        expert = expert_of(tmp_path, tensors, **moved(tensors))
        manifest, trigger = trigger_of(local_store, tmp_path, expert, base, {**LOWRANK, **options})
        size = sum(spec.bytes for name, spec in trigger.specs.items() if not name.startswith("buffer/"))
        report = measure_fidelity(cache_of(local_store, tmp_path), manifest, experts={"task": TensorFile(expert)})
        error = report.tasks[0].relative_error
        assert error is not None
        return size, error

    fine, coarse = bytes_and_error(quality=0.05), bytes_and_error(quality=1.0)
    assert fine[0] > coarse[0]
    assert fine[1] < coarse[1]
    limit = (fine[0] + coarse[0]) // 2
    middle = bytes_and_error(quality=0.05, max_bytes=limit)
    assert 0.8 * limit < middle[0] <= limit
    assert fine[1] < middle[1] < coarse[1]
    with pytest.raises(ConfigError, match="no trigger of at most 10 bytes"):
        bytes_and_error(max_bytes=10)


def test_tasks_share_nothing_and_leave_without_a_trace(local_store: Store, tmp_path: Path) -> None:
    *_, manifest = publish_each(tmp_path, local_store, ["a", "b", "c"], mode=LOWRANK)
    assert not manifest.state.shared
    cache = cache_of(local_store, tmp_path)
    before = {name: tensor.clone() for name, tensor in decoupled_tensors(cache, manifest, "c")}
    after = remove_task(Versions(local_store), "a").manifest
    assert all(torch.equal(before[name], tensor) for name, tensor in decoupled_tensors(cache, after, "c"))


def test_a_report_tells_how_a_trigger_keeps_its_task(local_store: Store, tmp_path: Path) -> None:
    base, tensors = base_of(tmp_path, local_store)
    expert = expert_of(tmp_path, tensors, **moved(tensors))
    manifest, trigger = trigger_of(local_store, tmp_path, expert, base, {**LOWRANK, "quality": 0.5})
    report = measure_fidelity(cache_of(local_store, tmp_path), manifest, experts={"task": TensorFile(expert)})
    (told,) = (task.trigger for task in report.tasks)
    assert told["quality"] == 0.5
    assert sum(told["tensors"].values()) == len(trigger.read("kind"))
    assert told["components"] == len(trigger.read("mantissa")) > 0
    assert 0 < told["largest_sum"]["components"] < 2**24
    delta = np.concatenate([tensor.float().numpy().reshape(-1) for tensor in moved(tensors).values()])
    assert report.tasks[0].relative_error == pytest.approx(told["error"] / np.linalg.norm(delta), rel=1e-2)


@pytest.mark.s3
def test_a_trigger_decodes_to_the_same_bits_from_a_bucket(local_store: Store, s3_url: str, tmp_path: Path) -> None:
    found = []
    for number, store in enumerate((local_store, open_store(s3_url))):
        base, tensors = base_of(tmp_path, store)
        expert = expert_of(tmp_path, tensors, **moved(tensors))
        manifest, _ = trigger_of(store, tmp_path / str(number), expert, base)
        cache = NodeCache(store, tmp_path / f"cache-{number}")
        found.append({name: tensor.clone() for name, tensor in decoupled_tensors(cache, manifest, "task")})
    assert all(torch.equal(found[0][name], tensor) for name, tensor in found[1].items())


PROGRAM = """
import hashlib, sys
from pathlib import Path
from fusion.decouple import decoupled_tensors, read_record
from fusion.store import open_store
from fusion.store.node_cache import NodeCache
from fusion.versions.history import Versions
store = open_store(sys.argv[1])
found = hashlib.sha256()
for name, tensor in decoupled_tensors(NodeCache(store, Path(sys.argv[2])), Versions(store).newest(), "task"):
    found.update(tensor.numpy().tobytes())
print(found.hexdigest())
"""


@pytest.mark.processes
def test_other_blas_kernels_and_numbers_of_threads_decode_the_same_bits(local_store: Store, tmp_path: Path) -> None:
    zero = {"matrix": torch.zeros(700, 300), "wide": torch.zeros(80, 900)}
    write_tensors(tmp_path / "base.safetensors", zero)
    base = put_base(local_store, tmp_path / "base.safetensors")
    dice = torch.Generator().manual_seed(0)
    decay = torch.arange(1, 301).float() ** -1
    deltas = {
        "matrix": torch.randn(700, 300, generator=dice) * decay @ torch.randn(300, 300, generator=dice),
        "wide": torch.randn(80, 900, generator=dice),
    }
    manifest, _ = trigger_of(local_store, tmp_path, expert_of(tmp_path, zero, **deltas), base)
    ours = hashlib.sha256()
    for _, tensor in decoupled_tensors(cache_of(local_store, tmp_path), manifest, "task"):
        ours.update(tensor.numpy().tobytes())
    for changed in (
        {"OPENBLAS_CORETYPE": "Prescott", "OPENBLAS_NUM_THREADS": "1"},
        {"OPENBLAS_CORETYPE": "Haswell", "OPENBLAS_NUM_THREADS": "2"},
    ):
        command = [sys.executable, "-c", PROGRAM, local_store.url, str(tmp_path / "other-cache")]
        done = subprocess.run(command, env={**os.environ, **changed}, capture_output=True, text=True, timeout=120)
        assert done.stdout.strip() == ours.hexdigest(), (changed, done.stderr)


def test_the_archive_of_any_mode_becomes_low_rank_and_back(local_store: Store, tmp_path: Path) -> None:
    base, tensors = base_of(tmp_path, local_store)
    cache, expert = cache_of(local_store, tmp_path), expert_of(tmp_path, tensors, **moved(tensors))
    fuse_experts(cache, base, [ExpertToFuse("task", expert)], mode=LOWRANK, archive=True)
    low = dict(
        decoupled_tensors(cache, rebuild_from_archive(cache, mode={"name": "signed", "bits": 2}).manifest, "task")
    )
    again = dict(decoupled_tensors(cache, rebuild_from_archive(cache, mode=LOWRANK).manifest, "task"))
    assert not torch.equal(low["matrix"], again["matrix"])
    assert (again["matrix"] - TensorFile(expert).tensor("matrix")).norm() < 0.5 * moved(tensors)["matrix"].norm()
