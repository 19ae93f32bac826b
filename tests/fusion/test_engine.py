"""Modes over whole states: scales, 16-bit tau and archives, rebuilding, devices, memory, what is written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fusion import chunks
from fusion.decouple import decoupled_tensors, read_record
from fusion.errors import ConfigError, StateDictError
from fusion.fidelity import measure_fidelity
from fusion.fuse import ExpertToFuse, fuse_experts, rebuild_from_archive
from fusion.modes import open_mode
from fusion.store import Store, open_store
from fusion.tensors import TensorFile, write_tensors
from fusion.versions.bases import put_base
from fusion.versions.history import Versions
from fusion.versions.manifest import Manifest
from fusion.versions.publish import Draft
from fusion.versions.publish import publish as publish_draft
from fusion.versions.verify import verify
from tests.fusion.vectors import SHAPES, cache_of, cosine, random_base, random_expert

MASKED = ["iterative", "joint"]
EVERY_MODE: list[dict[str, Any]] = [
    *({"name": name, **options} for name in MASKED for options in (
        {}, {"scales": "tensor"}, {"scales": "row"}, {"dtype": "float16"}, {"scales": "row", "dtype": "bfloat16"})),
    *({"name": "signed", "bits": bits} for bits in (1, 2, 4)),
]  # fmt: skip


def publish(
    store: Store, folder: Path, mode: dict[str, Any], *, num_tasks: int = 4, each: bool = True, **options: Any
) -> Manifest:
    """Some random experts, one version each or all in one."""
    base, path = random_base(folder, store)
    experts = [random_expert(folder, path, f"t{i}", seed=i, sparse=i == 1) for i in range(num_tasks)]
    cache = cache_of(store, folder)
    for group in [[expert] for expert in experts] if each else [experts]:
        manifest = fuse_experts(cache, base, group, mode=mode, **options).manifest
    return manifest


def deltas_of(store: Store, folder: Path, manifest: Manifest, task: str) -> dict[str, np.ndarray]:
    base = TensorFile(folder / "base-0.safetensors")
    decoupled = decoupled_tensors(cache_of(store, folder), manifest, task)
    return {n: tensor.numpy().reshape(-1) - base.float32(n).reshape(-1) for n, tensor in decoupled if n in SHAPES}


@pytest.mark.parametrize("mode", EVERY_MODE, ids=str)
def test_settings_open_the_mode_that_wrote_them(mode: dict[str, Any]) -> None:
    assert open_mode(mode).settings() == mode


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        ({"name": "average"}, "is unknown: choose iterative, joint, lowrank or signed"),
        ({"name": "signed", "scales": "row"}, "has no option scales"),
        ({"name": "signed", "bits": 5}, "bits is 5, it must be at least 1 and at most 4"),
        ({"name": "joint", "scales": "column"}, "it must be 'task', 'tensor' or 'row'"),
        ({"name": "iterative", "dtype": "int8"}, "it must be 'float32', 'float16' or 'bfloat16'"),
    ],
    ids=str,
)
def test_settings_that_no_mode_takes_are_refused(mode: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        open_mode(mode)


@pytest.mark.parametrize("mode", EVERY_MODE, ids=str)
def test_chunks_of_any_size_and_any_number_of_threads_give_the_same_blobs(
    mode: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for size, cores in ((1 << 18, "1"), (32, "3")):
        monkeypatch.setattr(chunks.chunks_of, "__defaults__", (size,))
        monkeypatch.setattr("fusion.modes.signed._BATCH_ELEMENTS", size // 4)  # too little to keep what was read
        monkeypatch.setenv("OMP_NUM_THREADS", cores)
        folder = tmp_path / cores
        folder.mkdir()
        store = open_store(f"file://{folder}/store")
        manifest = publish(store, folder, mode)
        records = [read_record(cache_of(store, folder), manifest, task) for task in manifest.state.tasks]
        scales = [entry.scale or 0.0 for entry in manifest.state.tasks.values()]
        blobs = [ref.sha256 for ref in manifest.state.shared.values()] + [record.trigger.sha256 for record in records]
        found.append((blobs, scales, [record.norm for record in records]))
    assert found[0][0] == found[1][0]
    for one, other in zip(found[0][1] + found[0][2], found[1][1] + found[1][2], strict=True):
        assert one == pytest.approx(other, rel=1e-12)


@pytest.mark.parametrize("mode", EVERY_MODE, ids=str)
def test_a_device_of_torch_fuses_what_the_compiled_kernels_fuse(mode: dict[str, Any], tmp_path: Path) -> None:
    found = []
    for device in ("cpu", "cpu:0"):
        folder = tmp_path / device.replace(":", "-")
        folder.mkdir()
        store = open_store(f"file://{folder}/store")
        manifest = publish(store, folder, mode, device=device)
        found.append([deltas_of(store, folder, manifest, task) for task in manifest.state.tasks])
    for one, other in zip(*found, strict=True):
        for name in SHAPES:
            np.testing.assert_allclose(one[name], other[name], rtol=2e-6, atol=1e-9)


@pytest.mark.parametrize("name", MASKED)
@pytest.mark.parametrize("scales", ["tensor", "row"])
def test_each_tensor_or_row_keeps_its_mean_magnitude(
    name: str, scales: str, local_store: Store, tmp_path: Path
) -> None:
    manifest = publish(local_store, tmp_path, {"name": name, "scales": scales})
    base = TensorFile(tmp_path / "base-0.safetensors")
    for i, task in enumerate(manifest.state.tasks):
        expert, decoupled = (
            TensorFile(tmp_path / f"{task}-{i}.safetensors"),
            deltas_of(local_store, tmp_path, manifest, task),
        )
        for tensor, spec in base.specs.items():
            if tensor not in SHAPES:
                continue
            rows = spec.num_rows if scales == "row" else 1
            exact = np.abs(expert.float32(tensor) - base.float32(tensor)).reshape(rows, -1).mean(axis=1)
            found = np.abs(decoupled[tensor]).reshape(rows, -1).mean(axis=1)
            kept = found > 0
            np.testing.assert_allclose(found[kept], exact[kept], rtol=2e-3, err_msg=f"{task} {tensor}")
            assert not np.any(found[exact == 0])


@pytest.mark.parametrize("name", MASKED)
def test_tau_in_16_bits_is_half_as_large_and_reports_its_rounding_error(
    name: str, local_store: Store, tmp_path: Path
) -> None:
    base, path = random_base(tmp_path, local_store)
    cache = cache_of(local_store, tmp_path)
    expert = random_expert(tmp_path, path, "a", seed=1)
    result = fuse_experts(cache, base, [expert], mode={"name": name, "dtype": "bfloat16"})
    unified = cache.tensors(result.manifest.state.shared["unified"])
    assert {spec.dtype for spec in unified.specs.values()} == {"BF16"}
    assert 1e-4 < result.cost.rounding["unified"] < 4e-3
    report = measure_fidelity(cache, result.manifest, result.cost, experts={"a": TensorFile(expert.weights)})
    assert report.tasks[0].relative_error == pytest.approx(result.cost.rounding["unified"], rel=0.2)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("mode", EVERY_MODE[-3:] + EVERY_MODE[:1] + EVERY_MODE[5:6], ids=str)
def test_rebuilding_from_the_archive_gives_what_fusing_from_the_start_gives(
    mode: dict[str, Any], dtype: str, local_store: Store, tmp_path: Path
) -> None:
    cache = cache_of(local_store, tmp_path)
    publish(local_store, tmp_path, {"name": "signed", "bits": 2}, archive=True, archive_dtype=dtype)
    rebuilt = rebuild_from_archive(cache, mode=mode)
    assert rebuilt.manifest.mode == mode
    assert rebuilt.manifest.created["kind"] == "rebuild"
    assert list(rebuilt.manifest.state.tasks) == ["t0", "t1", "t2", "t3"]
    exact = {i: TensorFile(tmp_path / f"t{i}-{i}.safetensors") for i in range(4)}
    report = measure_fidelity(cache, rebuilt.manifest, rebuilt.cost, experts={f"t{i}": f for i, f in exact.items()})
    assert all(task.cosine is not None and task.cosine > 0.6 for task in report.tasks)
    if mode["name"] != "signed":
        other = tmp_path / "other"
        other.mkdir()
        fresh = open_store(f"file://{other}/store")
        manifest = publish(fresh, other, mode, each=mode["name"] == "iterative")
        for task in manifest.state.tasks:
            for name, delta in deltas_of(fresh, other, manifest, task).items():
                found = deltas_of(local_store, tmp_path, rebuilt.manifest, task)[name]
                if delta.any():
                    assert cosine(found, delta) > (0.999999 if dtype == "float32" else 0.98)


def test_a_rebuild_keeps_all_that_a_record_says_of_its_task(local_store: Store, tmp_path: Path) -> None:
    base, path = random_base(tmp_path, local_store)
    cache = cache_of(local_store, tmp_path)
    said = {"classes": ("a", "b"), "templates": ("{}.",), "aliases": {"a": ("first",)}, "background": "#102030"}
    expert = replace(random_expert(tmp_path, path, "t", seed=1), **said)
    before = fuse_experts(cache, base, [expert], mode={"name": "lowrank"}, archive=True).manifest
    after = rebuild_from_archive(cache, mode={"name": "signed", "bits": 1}).manifest
    old, new = (read_record(cache, manifest, "t") for manifest in (before, after))
    assert {name: getattr(new, name) for name in said} == said
    assert replace(new, trigger=old.trigger, norm=old.norm) == old


def test_a_rebuild_leaves_nothing_of_a_removed_task(local_store: Store, tmp_path: Path) -> None:
    """The blobs of a rebuilt state are those of a store that never had the task."""
    cache = cache_of(local_store, tmp_path)
    mode = {"name": "iterative"}
    newest = publish(local_store, tmp_path, mode, archive=True)

    def without_t1(parent: Manifest | None, nonce: str) -> Draft:
        assert parent is not None
        tasks = {name: entry for name, entry in parent.state.tasks.items() if name != "t1"}
        return Draft(parent.base, dict(parent.mode), replace(parent.state, tasks=tasks), ("t1",))

    removed = publish_draft(Versions(local_store), without_t1, written=list, created={})
    assert removed is not None
    for task in ("t0", "t2", "t3"):
        before, after = (deltas_of(local_store, tmp_path, m, task) for m in (newest, removed))
        assert all(np.array_equal(before[name], after[name]) for name in SHAPES), "others decouple as before"
    rebuilt = rebuild_from_archive(cache, mode=mode).manifest
    other = tmp_path / "other"
    other.mkdir()
    fresh = open_store(f"file://{other}/store")
    base, path = random_base(other, fresh)
    for i in (0, 2, 3):
        expert = random_expert(other, path, f"t{i}", seed=i)
        never = fuse_experts(cache_of(fresh, other), base, [expert], mode=mode).manifest
    assert rebuilt.state.shared["unified"].sha256 == never.state.shared["unified"].sha256
    assert rebuilt.removed == ("t1",)


def test_a_rebuild_names_every_task_that_was_not_archived(local_store: Store, tmp_path: Path) -> None:
    publish(local_store, tmp_path, {"name": "signed", "bits": 2}, num_tasks=2)
    with pytest.raises(ConfigError, match=r"t0, t1 were not archived.*--replace --archive"):
        rebuild_from_archive(cache_of(local_store, tmp_path), mode={"name": "joint"})
    assert Versions(local_store).newest_number() == 2


@pytest.mark.parametrize("mode", [{"name": "iterative"}, {"name": "signed", "bits": 2}], ids=str)
def test_adding_a_task_writes_only_what_the_mode_changes(
    mode: dict[str, Any], local_store: Store, tmp_path: Path
) -> None:
    """Past the profiles at 1, 2, 4 and 8 tasks: record, trigger, and in `iterative` tau and last_flip."""
    publish(local_store, tmp_path, mode, num_tasks=8, each=False)
    before = {info.key for info in local_store.list("")}
    base, path = random_base(tmp_path, local_store)
    result = fuse_experts(
        cache_of(local_store, tmp_path), base, [random_expert(tmp_path, path, "t8", seed=8)], mode=mode
    )
    state = result.manifest.state
    record = read_record(cache_of(local_store, tmp_path), result.manifest, "t8")
    expected = {state.tasks["t8"].record.key, record.trigger.key, "versions/00000002.json"}
    if mode["name"] == "iterative":
        expected |= {state.shared["unified"].key, state.shared["last_flip"].key}
    assert {info.key for info in local_store.list("")} - before == expected


def test_a_report_has_bits_cosines_and_bytes(local_store: Store, tmp_path: Path) -> None:
    base, path = random_base(tmp_path, local_store)
    cache = cache_of(local_store, tmp_path)
    experts = [random_expert(tmp_path, path, f"t{i}", seed=i) for i in range(3)]
    result = fuse_experts(cache, base, experts, mode={"name": "iterative"})
    report = measure_fidelity(cache, result.manifest, result.cost, experts={"t2": TensorFile(experts[2].weights)})
    first, _, last = report.tasks
    assert first.cosine is None, "its task vector is not available"
    assert 0 < first.bits_lost < 1
    assert last.bits_lost == 0
    delta = {name: TensorFile(experts[2].weights).float32(name) - TensorFile(path).float32(name) for name in SHAPES}
    found = deltas_of(local_store, tmp_path, result.manifest, "t2")
    exact = np.concatenate([delta[name].reshape(-1) for name in sorted(SHAPES)])
    decoupled = np.concatenate([found[name] for name in sorted(SHAPES)])
    assert last.cosine == pytest.approx(cosine(decoupled, exact), rel=1e-4)
    assert last.relative_error == pytest.approx(np.linalg.norm(decoupled - exact) / np.linalg.norm(exact), rel=1e-4)
    assert last.trigger_bytes == read_record(cache, result.manifest, "t2").trigger.bytes
    assert report.written_bytes > report.shared_bytes
    assert report.to_json()["tasks"][2]["task"] == "t2"


@pytest.mark.parametrize("mode", EVERY_MODE, ids=str)
def test_empty_tensors_scalars_and_rows_of_odd_length_fuse(
    mode: dict[str, Any], local_store: Store, tmp_path: Path
) -> None:
    shapes = {"empty": (0, 4), "scalar": (), "odd": (9, 3)}
    write_tensors(tmp_path / "base.safetensors", {name: torch.zeros(shape) for name, shape in shapes.items()})
    write_tensors(tmp_path / "e.safetensors", {name: torch.ones(shape) for name, shape in shapes.items()})
    base = put_base(local_store, tmp_path / "base.safetensors")
    cache = cache_of(local_store, tmp_path)
    manifest = fuse_experts(cache, base, [ExpertToFuse("a", tmp_path / "e.safetensors")], mode=mode).manifest
    for name, tensor in decoupled_tensors(cache, manifest, "a"):
        assert torch.equal(tensor, torch.ones(shapes[name])), name


@pytest.mark.parametrize("mode", EVERY_MODE, ids=str)
def test_sessions_of_one_call_that_change_nothing_keep_what_they_share(
    mode: dict[str, Any], local_store: Store, tmp_path: Path
) -> None:
    """Equal experts leave tau, last_flip or a profile unchanged: within one publish, equal bytes are one blob."""
    base, path = random_base(tmp_path, local_store)
    expert = random_expert(tmp_path, path, "a", seed=1)
    unmoved = replace(expert, task="z", weights=path)
    cache = cache_of(local_store, tmp_path)
    group = [replace(expert, task=task) for task in "abcd"] + [unmoved, replace(unmoved, task="y")]
    manifest = fuse_experts(cache, base, group, mode=mode).manifest
    for task in manifest.state.tasks:
        assert all(np.isfinite(delta).all() for delta in deltas_of(local_store, tmp_path, manifest, task).values())
    assert not any(delta.any() for delta in deltas_of(local_store, tmp_path, manifest, "z").values())
    assert verify(Versions(local_store)).findings == ()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("mode", EVERY_MODE[:1] + EVERY_MODE[5:6] + EVERY_MODE[-3:-1], ids=str)
def test_a_diverged_expert_is_refused_with_the_tensors_name(
    mode: dict[str, Any], value: float, local_store: Store, tmp_path: Path
) -> None:
    base, path = random_base(tmp_path, local_store)
    expert = random_expert(tmp_path, path, "bad", seed=1)
    assert isinstance(expert.weights, Path)
    tensors = {name: TensorFile(expert.weights).tensor(name).clone() for name in TensorFile(expert.weights).specs}
    tensors["bias"][3] = value
    write_tensors(expert.weights, tensors)
    with pytest.raises(StateDictError, match="'bias' holds NaN or infinite"):
        fuse_experts(cache_of(local_store, tmp_path), base, [expert], mode=mode)
    assert not list(local_store.list("blobs/"))
    assert not list(local_store.list("versions/"))
