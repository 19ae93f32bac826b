"""docs/format.md is right: the reader on that page, run as printed, gets what condu gets, byte for byte."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fusion.decouple import decoupled_tensors
from fusion.fuse import ExpertToFuse, fuse_experts
from fusion.store import Store, open_store
from fusion.tensors import write_tensors
from fusion.versions.bases import put_base
from fusion.versions.history import manifest_key
from fusion.versions.manifest import Manifest
from tests.fusion.faults import flip_a_bit
from tests.fusion.vectors import cache_of

PAGE = Path(__file__).parents[2] / "docs" / "format.md"
MODES: list[dict[str, Any]] = [
    {"name": "iterative"},
    {"name": "joint"},
    {"name": "iterative", "dtype": "float16"},
    {"name": "joint", "dtype": "float16"},
    *({"name": "signed", "bits": bits} for bits in (1, 2, 4)),
    {"name": "lowrank", "quality": 0.5},
]
NUM_TASKS = 4
Decouple = Callable[[Path, str], dict[str, np.ndarray]]


@pytest.fixture(scope="module")
def listing() -> str:
    (found,) = re.findall(r"### A reader.*?```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    return str(found)


@pytest.fixture(scope="module")
def decouple(listing: str) -> Decouple:
    namespace: dict[str, Any] = {"__name__": "reader"}
    exec(compile(listing, str(PAGE), "exec"), namespace)
    found: Decouple = namespace["decouple"]
    return found


def publish(store: Store, folder: Path, mode: dict[str, Any]) -> Manifest:
    """Four tasks in four sessions, over tensors of every kind that the page mentions."""
    dice = torch.Generator().manual_seed(0)
    base = {
        "matrix": torch.randn(19, 7, generator=dice),
        "conv.weight": torch.randn(4, 3, 3, 3, generator=dice),
        "half": torch.randn(6, 5, generator=dice).half(),
        "vector": torch.randn(13, generator=dice),
        "scalar": torch.randn((), generator=dice),
        "empty": torch.zeros(0, 4),
        "bn.running_mean": torch.randn(5, generator=dice),
        "bn.num_batches_tracked": torch.tensor(7),
        "positions": torch.arange(6),
    }
    write_tensors(folder / "base.safetensors", base)
    kept = put_base(store, folder / "base.safetensors")
    for k in range(NUM_TASKS):
        expert = {
            name: tensor + (0.1 * torch.randn(tensor.shape, generator=dice)).to(tensor.dtype)
            if tensor.is_floating_point()
            else tensor.clone()
            for name, tensor in base.items()
        }
        expert["matrix"][3] = base["matrix"][3]  # a row that no task moves
        if k % 2:
            expert["bn.running_mean"] = base["bn.running_mean"]
            expert["bn.num_batches_tracked"] += k
        write_tensors(folder / f"task-{k}.safetensors", expert)
        new = ExpertToFuse(f"task-{k}", folder / f"task-{k}.safetensors")
        manifest = fuse_experts(cache_of(store, folder), kept, [new], mode=mode).manifest
    return manifest


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: "-".join(map(str, mode.values())))
def test_the_reader_on_the_page_gets_every_byte_that_condu_gets(
    mode: dict[str, Any], decouple: Decouple, tmp_path: Path
) -> None:
    store = open_store(f"file://{tmp_path}/store")
    newest = publish(store, tmp_path, mode)
    for task in newest.state.tasks:
        ours = {name: tensor.numpy() for name, tensor in decoupled_tensors(cache_of(store, tmp_path), newest, task)}
        theirs = decouple(tmp_path / "store", task)
        assert theirs.keys() == ours.keys()
        for name, tensor in ours.items():
            assert (theirs[name].dtype, theirs[name].shape) == (tensor.dtype, tensor.shape), name
            assert theirs[name].tobytes() == tensor.tobytes(), name


def test_the_reader_on_the_page_refuses_what_it_does_not_know(decouple: Decouple, tmp_path: Path) -> None:
    publish(open_store(f"file://{tmp_path}/store"), tmp_path, {"name": "iterative", "scales": "row"})
    with pytest.raises(AssertionError, match="does not know"):
        decouple(tmp_path / "store", "task-0")


@pytest.mark.parametrize("what", ["manifest", "record", "tau", "base"])
def test_the_reader_on_the_page_finds_damage(what: str, decouple: Decouple, tmp_path: Path) -> None:
    store = open_store(f"file://{tmp_path}/store")
    newest = publish(store, tmp_path, {"name": "iterative"})
    key = {
        "manifest": manifest_key(newest.version),
        "record": newest.state.tasks["task-0"].record.key,
        "tau": newest.state.shared["unified"].key,
        "base": newest.base.weights.key,
    }[what]
    body = store.get(key)
    if what == "manifest":  # still valid JSON: only the hash gives it away
        store.delete(key)
        assert store.put_if_absent(key, body.replace(b'"session":1,', b'"session":2,'))
    else:
        flip_a_bit(store, key)
    with pytest.raises(AssertionError, match="damaged"):
        decouple(tmp_path / "store", "task-0")


def test_the_reader_on_the_page_imports_only_what_the_page_says(listing: str) -> None:
    imported = set()
    for node in ast.walk(ast.parse(listing)):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(str(node.module))
    assert imported == {"hashlib", "json", "sys", "zlib", "pathlib", "numpy", "safetensors.numpy"}
