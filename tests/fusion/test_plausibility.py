"""Experts that are the base, or unrelated to it, are found by figures; masks and damaged bases are told apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fusion.decouple import decoupled_tensors
from fusion.errors import StateDictError
from fusion.fuse import ExpertToFuse, fuse_experts
from fusion.plausibility import change_of
from fusion.store import Store
from fusion.tensors import TensorFile, write_tensors
from fusion.versions.bases import put_base
from tests.fusion.test_bad_experts import MODES
from tests.fusion.vectors import cache_of

Tensors = dict[str, torch.Tensor]


def weights(seed: int) -> Tensors:
    random = torch.Generator().manual_seed(seed)
    return {"a.weight": torch.randn(40, 30, generator=random), "a.bias": torch.randn(40, generator=random)}


def written(path: Path, tensors: Tensors) -> TensorFile:
    write_tensors(path, tensors)
    return TensorFile(path)


def moved(tensors: Tensors, by: float) -> Tensors:
    noise = weights(99)
    return {name: tensor + by * noise[name] if name in noise else tensor for name, tensor in tensors.items()}


def test_the_change_is_the_two_figures_of_the_whole_weight_vectors(tmp_path: Path) -> None:
    one, other = weights(1), moved(weights(1), 0.1)
    change = change_of(written(tmp_path / "a", one), written(tmp_path / "b", other))
    first, second = (np.concatenate([t.numpy().ravel() for t in tensors.values()]) for tensors in (one, other))
    norms = np.linalg.norm(first), np.linalg.norm(second)
    np.testing.assert_allclose(change.cosine, first @ second / norms[0] / norms[1], rtol=1e-5)
    np.testing.assert_allclose(change.relative, np.linalg.norm(second - first) / norms[0], rtol=1e-5)
    assert change.doubt("x") is None


def test_the_base_itself_and_a_stranger_are_doubted_with_the_figure(tmp_path: Path) -> None:
    base = written(tmp_path / "base", weights(1))
    same = change_of(base, written(tmp_path / "same", weights(1)))
    assert "same is the base itself" in str(same.doubt("same"))
    assert "relative change 0" in str(same.doubt("same"))
    stranger = change_of(base, written(tmp_path / "stranger", weights(2)))
    assert abs(stranger.cosine) < 0.2
    assert f"cosine of their weights is {stranger.cosine:.3f}" in str(stranger.doubt("x"))
    scaled = change_of(base, written(tmp_path / "scaled", {n: 3 * t for n, t in weights(1).items()}))
    assert "relative change 2 " in str(scaled.doubt("x"))


def test_infinities_do_not_count(tmp_path: Path) -> None:
    mask = torch.full((4, 4), float("-inf")).triu(1)
    base = written(tmp_path / "base", {**weights(1), "attn_mask": mask})
    assert change_of(base, written(tmp_path / "same", {**weights(1), "attn_mask": mask})).relative == 0


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode["name"])
def test_an_infinite_mask_that_both_have_is_no_fault(mode: dict[str, Any], local_store: Store, tmp_path: Path) -> None:
    mask = torch.full((9, 9), float("-inf")).triu(1)
    tensors = {**weights(1), "attn_mask": mask}
    write_tensors(tmp_path / "base.safetensors", tensors)
    write_tensors(tmp_path / "expert.safetensors", moved(tensors, 0.05))
    base = put_base(local_store, tmp_path / "base.safetensors")
    cache = cache_of(local_store, tmp_path)
    manifest = fuse_experts(cache, base, [ExpertToFuse("a", tmp_path / "expert.safetensors")], mode=mode).manifest
    decoupled = dict(decoupled_tensors(cache, manifest, "a"))
    assert torch.equal(decoupled["attn_mask"], mask)
    assert torch.isfinite(decoupled["a.weight"]).all()


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode["name"])
def test_nan_in_the_base_blames_the_base(mode: dict[str, Any], local_store: Store, tmp_path: Path) -> None:
    tensors = weights(1)
    write_tensors(tmp_path / "expert.safetensors", moved(tensors, 0.05))
    tensors["a.weight"][3, 3] = float("nan")
    write_tensors(tmp_path / "base.safetensors", tensors)
    base = put_base(local_store, tmp_path / "base.safetensors")
    cache = cache_of(local_store, tmp_path)
    with pytest.raises(StateDictError, match=r"the base .*'a\.weight' holds NaN .*Use an undamaged file of the base"):
        fuse_experts(cache, base, [ExpertToFuse("a", tmp_path / "expert.safetensors")], mode=mode)
