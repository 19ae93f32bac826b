"""Experts applied live give the features of their rebuilt models, alone and mixed in one batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fusion.answers.clip import Clip, build_clip
from fusion.answers.live import image_side, live_images, live_texts
from fusion.answers.live_layers import LiveSide
from fusion.decouple import DecoupledExpert
from fusion.fuse import ExpertToFuse, fuse_experts
from fusion.store import Store, open_store
from fusion.store.node_cache import NodeCache
from fusion.tensors import write_tensors
from fusion.versions.manifest import Manifest
from tests.fusion.answers.test_folding import TIMM_CFG
from tests.tiny import MODEL_CFG, tiny_base

TASKS = ("a", "b", "c")
_TOKENS = "token_embedding.weight"


def fused(
    store: Store, folder: Path, mode: dict[str, object], cfg: dict[str, Any] = MODEL_CFG
) -> tuple[Clip, Manifest, NodeCache]:
    """A base and experts whose every tensor moved: along a few directions, or a little everywhere; of tokens a few."""
    cache, base = NodeCache(store), tiny_base(store, model_cfg=cfg)
    clip = build_clip(base, cache.tensors(base.weights))
    experts = []
    for number, task in enumerate(TASKS):
        noise = torch.Generator().manual_seed(number)
        moved = {}
        for name, value in clip.model.state_dict().items():
            if value.dim() > 1:
                rank = number + 1
                left, right = (torch.randn(size, rank, generator=noise) for size in (len(value), value[0].numel()))
                delta = 0.05 * (left @ right.T).reshape(value.shape)
            else:
                delta = 0.05 * torch.randn(value.shape, generator=noise)
            if name.endswith(_TOKENS):  # as training does: only of the tokens that it saw
                delta = torch.zeros_like(value).index_fill(
                    0, torch.tensor([320, 1929, 2368, 49407]), 0.1 * (number + 1)
                )
            moved[name] = (value + delta).contiguous()
        write_tensors(folder / f"{task}.safetensors", moved)
        experts.append(ExpertToFuse(task, folder / f"{task}.safetensors"))
    return clip, fuse_experts(cache, base, experts, mode=mode).manifest, cache


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> tuple[Clip, dict[str, LiveSide], dict[str, Clip]]:
    folder = tmp_path_factory.mktemp("live")
    clip, manifest, cache = fused(open_store(str(folder / "store")), folder, {"name": "lowrank"})
    live, rebuilt = {}, {}
    for task in TASKS:
        expert = DecoupledExpert(cache, manifest, task)
        found = image_side(expert)
        assert found is not None
        live[task], rebuilt[task] = found, clip.copy_with(expert.tensors())
    return clip, live, rebuilt


@pytest.mark.parametrize("owners", [("a",), ("b", "b", "b"), ("a", "b", "c"), ("c", "a", "c", "b", "a")], ids=str)
def test_features_are_the_rebuilt_experts(
    owners: tuple[str, ...], setting: tuple[Clip, dict[str, LiveSide], dict[str, Clip]]
) -> None:
    clip, live, rebuilt = setting
    tower = live_images(clip)
    assert tower is not None
    images = torch.randn(len(owners), 3, 32, 32, generator=torch.Generator().manual_seed(9))
    found = tower.image_features(images, [live[task] for task in owners])
    for image, task, row in zip(images, owners, found, strict=True):
        wanted = rebuilt[task].image_features(image[None])[0]
        torch.testing.assert_close(row, wanted, rtol=0, atol=1e-5)
        assert not torch.allclose(wanted, clip.image_features(image[None])[0], atol=1e-2)  # the expert matters


def test_the_base_is_as_it_was_and_answers_for_an_expert_without_changes(
    setting: tuple[Clip, dict[str, LiveSide], dict[str, Clip]],
) -> None:
    clip, live, _ = setting
    images = torch.randn(2, 3, 32, 32)
    before = clip.image_features(images)
    tower, nothing = live_images(clip), LiveSide()
    assert tower is not None
    mixed = tower.image_features(images, [nothing, live["a"]])
    torch.testing.assert_close(mixed[0], before[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(clip.image_features(images), before, rtol=0, atol=0)


def test_an_expert_in_memory_is_as_large_as_its_components(
    setting: tuple[Clip, dict[str, LiveSide], dict[str, Clip]],
) -> None:
    clip, live, rebuilt = setting
    assert 0 < live["a"].num_bytes < live["c"].num_bytes < rebuilt["c"].own_bytes(clip)


def test_other_modes_and_other_towers_are_rebuilt(local_store: Store, tmp_path: Path) -> None:
    _, manifest, cache = fused(local_store, tmp_path, {"name": "signed", "bits": 1})
    assert image_side(DecoupledExpert(cache, manifest, "a")) is None
    timm = tiny_base(local_store, model_cfg=TIMM_CFG, architecture="timm", seed=1)
    assert live_images(build_clip(timm, cache.tensors(timm.weights))) is None


@pytest.mark.parametrize("cfg", [MODEL_CFG, TIMM_CFG], ids=["CLIP", "CustomTextCLIP"])
def test_texts_are_the_rebuilt_experts(cfg: dict[str, Any], local_store: Store, tmp_path: Path) -> None:
    clip, manifest, cache = fused(local_store, tmp_path, {"name": "lowrank"}, cfg)
    classes, templates = ("cat", "dog", "a rather long name of something"), ("a photo of a {}.", "{}")
    for task in TASKS:
        expert = DecoupledExpert(cache, manifest, task)
        live, rebuilt = live_texts(clip, expert), clip.copy_with(expert.tensors())
        assert live is not None
        wanted = rebuilt.class_features(classes, templates)
        torch.testing.assert_close(live.class_features(classes, templates), wanted, rtol=0, atol=1e-5)
        assert not torch.allclose(wanted, clip.class_features(classes, templates), atol=1e-2)
