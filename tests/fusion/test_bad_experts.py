"""Bad experts: each is refused with its file, its tensor and what to do, and leaves nothing behind."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fusion.decouple import decoupled_tensors
from fusion.errors import BaseMismatchError, StateDictError
from fusion.fuse import fuse_experts
from fusion.store import Store, open_store
from fusion.tensors import TensorFile, write_tensors
from fusion.versions.history import Versions
from tests.fusion.faults import keys, same
from tests.fusion.vectors import cache_of, random_base, random_expert

MODES: list[dict[str, Any]] = [
    *({"name": name} for name in ("iterative", "joint", "lowrank")),
    {"name": "signed", "bits": 2},
]
Tensors = dict[str, torch.Tensor]
COUNTER = "bn.num_batches_tracked"


def load(path: Path) -> Tensors:
    file = TensorFile(path)
    return {name: file.tensor(name).clone() for name in file.specs}


def with_value(name: str, value: float) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        tensors = load(path)
        tensors[name].view(-1)[-1] = value
        write_tensors(path, tensors)

    return spoil


def with_tensors(change: Callable[[Tensors], object]) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        tensors = load(path)
        change(tensors)
        write_tensors(path, tensors)

    return spoil


def cut(path: Path, num_bytes: int) -> None:
    path.write_bytes(path.read_bytes()[:num_bytes])


def become_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "NaN": (with_value("text.proj", float("nan")), r"tensor 'text\.proj' holds NaN or infinite.*lower learning rate"),
    "infinity": (with_value("logit_scale", float("-inf")), r"tensor 'logit_scale' holds NaN or infinite"),
    "a missing tensor": (with_tensors(lambda t: t.pop("bias")), r"bias is missing.*base that it was fine-tuned from"),
    "an extra tensor": (with_tensors(lambda t: t.update(head=torch.zeros(3))), r"head is not in the base"),
    "a missing buffer": (with_tensors(lambda t: t.pop("bn.running_mean")), r"bn\.running_mean is missing"),
    "another shape": (
        with_tensors(lambda t: t.update({"text.proj": t["text.proj"].T.contiguous()})),
        r"text\.proj has shape \[7, 19\], the base has \[19, 7\]",
    ),
    "integers for floats": (
        with_tensors(lambda t: t.update(bias=t["bias"].to(torch.int64))),
        r"bias has dtype I64, the base has F32",
    ),
    "booleans for floats": (
        with_tensors(lambda t: t.update(bias=t["bias"].to(torch.bool))),
        r"bias has dtype BOOL, the base has F32",
    ),
    "every mistake at once": (
        with_tensors(lambda t: (t.pop("bias"), t.update(a=torch.zeros(1), logit_scale=torch.zeros(2)))),
        r"bias is missing; a is not in the base; logit_scale has shape \[2\], the base has \[\]",
    ),
    "a file cut in its header": (
        lambda path: cut(path, 100),
        r"not a complete safetensors file.*and a truncated file copied again",
    ),
    "a file cut in its last tensor": (lambda path: cut(path, path.stat().st_size - 1), r"not a complete safetensors"),
    "an empty file": (lambda path: cut(path, 0), r"not a complete safetensors file"),
    "a pickle under another name": (
        lambda path: torch.save({"bias": torch.zeros(3)}, path),
        r"reads safetensors only: a PyTorch pickle .* must be converted first",
    ),
    "a bare pickle": (lambda path: path.write_bytes(pickle.dumps({"bias": 1})), r"reads safetensors only"),
    "a folder": (become_a_folder, r"is a folder.*name the \.safetensors file"),
    "nothing": (lambda path: path.unlink(), r"no such file"),
}


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode["name"])
@pytest.mark.parametrize("what", BAD)
def test_a_bad_expert_is_named_and_leaves_nothing(
    what: str, mode: dict[str, Any], local_store: Store, tmp_path: Path
) -> None:
    base, path = random_base(tmp_path, local_store)
    cache = cache_of(local_store, tmp_path)
    before_it = fuse_experts(cache, base, [random_expert(tmp_path, path, "before", seed=1)], mode=mode).manifest
    good, bad = random_expert(tmp_path, path, "good", seed=2), random_expert(tmp_path, path, "bad", seed=3)
    assert isinstance(bad.weights, Path)
    spoil, says = BAD[what]
    spoil(bad.weights)
    before = {key for key in keys(local_store) if not key.startswith("experts/")}  # archived files may stay
    with pytest.raises(StateDictError, match=says) as caught:
        fuse_experts(cache, base, [good, bad], mode=mode)
    assert bad.weights.name in str(caught.value)
    assert {key for key in keys(local_store) if not key.startswith("experts/")} == before
    assert Versions(local_store).newest() == before_it
    assert not list((tmp_path / "store" / "tmp").iterdir()), "no temporary file either"
    mended = replace(random_expert(tmp_path, path, "mended", seed=3), task="bad")
    assert fuse_experts(cache, base, [good, mended], mode=mode).fused == ("good", "bad")


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode["name"])
def test_an_expert_of_another_base_is_refused(mode: dict[str, Any], local_store: Store, tmp_path: Path) -> None:
    base, path = random_base(tmp_path, local_store)
    cache = cache_of(local_store, tmp_path)
    fuse_experts(cache, base, [random_expert(tmp_path, path, "a", seed=1)], mode=mode)
    other, other_path = random_base(tmp_path, local_store, seed=5)
    before = keys(local_store)
    with pytest.raises(BaseMismatchError, match=f"{base.sha256[:12]}.*{other.sha256[:12]}.*use another store"):
        fuse_experts(cache, other, [random_expert(tmp_path, other_path, "b", seed=2)], mode=mode)
    assert {key for key in keys(local_store) if not key.startswith("experts/")} == {
        key for key in before if not key.startswith("experts/")
    }


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode["name"])
def test_an_expert_in_another_float_dtype_is_as_good_as_its_copy_in_float32(
    mode: dict[str, Any], dtype: torch.dtype, tmp_path: Path
) -> None:
    """Buffers too: they come back in the base's dtype, so that the state dict has the same layout as the base."""
    decoupled = []
    for number, copy in enumerate(("as it is", "in float32")):
        store = open_store(f"file://{tmp_path}/store-{number}")
        base, path = random_base(tmp_path, store)
        expert = random_expert(tmp_path, path, "pets", seed=1)
        assert isinstance(expert.weights, Path)
        with_tensors(lambda t: t["bn.running_mean"].add_(1))(expert.weights)
        tensors = {name: tensor.to(dtype) for name, tensor in load(expert.weights).items() if name != COUNTER}
        tensors[COUNTER] = torch.tensor(8, dtype=torch.int32)
        if copy == "in float32":
            tensors = {name: tensor.float() for name, tensor in tensors.items()} | {COUNTER: torch.tensor(8)}
        write_tensors(expert.weights, tensors)
        cache = cache_of(store, tmp_path)
        manifest = fuse_experts(cache, base, [expert], mode=mode).manifest
        decoupled.append(dict(decoupled_tensors(cache, manifest, "pets")))
    assert same(*decoupled)
    assert {name: tensor.dtype for name, tensor in decoupled[0].items()} == {
        name: tensor.dtype for name, tensor in load(path).items()
    }
    assert decoupled[0][COUNTER] == 8
