"""Experts applied live give the features of their rebuilt models, alone and mixed in one batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from open_clip.timm_model import TimmModel

from fusion.answers.clip import Clip, build_clip
from fusion.answers.folding import Folding
from fusion.answers.live import LiveImages, LiveSide, image_side, live_images, live_texts, noise_side
from fusion.decouple import DecoupledExpert
from fusion.fuse import ExpertToFuse, fuse_experts
from fusion.store import Store, open_store
from fusion.store.node_cache import NodeCache
from fusion.tensors import write_tensors
from fusion.versions.manifest import Manifest
from tests.fusion.answers.test_folding import TIMM_CFG
from tests.tiny import BATCH_NORM_CFG, MODEL_CFG, tiny_base

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
        moved, parameters = {}, dict(clip.model.named_parameters())
        for name, value in clip.model.state_dict().items():
            if name not in parameters:  # statistics of BatchNorms: an expert from elsewhere may have its own
                moved[name] = value * (1 + 0.1 * (number % 2)) if value.is_floating_point() else value + number
                continue
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


Setting = tuple[Clip, LiveImages, dict[str, LiveSide], dict[str, Clip]]


@pytest.fixture(scope="module", params=[MODEL_CFG, TIMM_CFG, BATCH_NORM_CFG], ids=["ViT", "timm", "ResNet"])
def setting(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Setting:
    """A base, what applies its experts, and the experts: applied and built."""
    folder = tmp_path_factory.mktemp("live")
    clip, manifest, cache = fused(open_store(str(folder / "store")), folder, {"name": "lowrank"}, request.param)
    tower = live_images(clip, Folding(clip))
    assert tower is not None
    live, rebuilt = {}, {}
    for task in TASKS:
        expert = DecoupledExpert(cache, manifest, task)
        found = image_side(expert)
        assert found is not None
        live[task], rebuilt[task] = tower.prepared(found), clip.copy_with(expert.tensors())
    return clip, tower, live, rebuilt


@pytest.mark.parametrize("owners", [("a",), ("b", "b", "b"), ("a", "b", "c"), ("c", "a", "c", "b", "a")], ids=str)
def test_features_are_the_rebuilt_experts(owners: tuple[str, ...], setting: Setting) -> None:
    clip, tower, live, rebuilt = setting
    # layers that see many positions do it in another way than those that see few
    for size in (32, 96) if isinstance(clip.model.visual, TimmModel) else (32,):
        images = torch.randn(len(owners), 3, size, size, generator=torch.Generator().manual_seed(9))
        found = tower.image_features(images, [live[task] for task in owners])
        for image, task, row in zip(images, owners, found, strict=True):
            wanted = rebuilt[task].image_features(image[None])[0]
            torch.testing.assert_close(row, wanted, rtol=0, atol=1e-4)
            assert not torch.allclose(wanted, clip.image_features(image[None])[0], atol=1e-2)  # the expert matters


def test_the_base_is_as_it_was_and_answers_for_an_expert_without_changes(setting: Setting) -> None:
    clip, tower, live, _ = setting
    images = torch.randn(2, 3, 32, 32)
    before = clip.image_features(images)
    nothing = tower.prepared(LiveSide())
    torch.testing.assert_close(tower.image_features(images, [nothing] * 2), before, rtol=0, atol=1e-5)
    mixed = tower.image_features(images, [nothing, live["a"]])
    torch.testing.assert_close(mixed[0], before[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(clip.image_features(images), before, rtol=0, atol=0)


def test_an_expert_in_memory_is_as_large_as_its_components(setting: Setting) -> None:
    clip, _, live, rebuilt = setting
    assert 0 < live["a"].num_bytes < live["c"].num_bytes < rebuilt["c"].own_bytes(clip)


def test_an_expert_of_noise_is_one_that_moves_everything(setting: Setting) -> None:
    clip, tower, _, _ = setting
    side, images = noise_side(clip, num_components=3), torch.randn(1, 3, 32, 32)
    names = {name for name, _ in clip.model.visual.named_parameters()}  # type: ignore[union-attr,operator]
    assert {*side.factors, *side.deltas} == names
    features = tower.image_features(images, [tower.prepared(side)])
    assert not torch.allclose(features, clip.image_features(images), atol=1e-3)


def test_other_modes_and_other_towers_are_rebuilt(local_store: Store, tmp_path: Path) -> None:
    _, manifest, cache = fused(local_store, tmp_path, {"name": "signed", "bits": 1})
    assert image_side(DecoupledExpert(cache, manifest, "a")) is None
    foreign = {**TIMM_CFG, "vision_cfg": {**TIMM_CFG["vision_cfg"], "timm_model_name": "convnext_atto"}}
    base = tiny_base(local_store, model_cfg=foreign, architecture="timm", seed=1)
    clip = build_clip(base, cache.tensors(base.weights))
    assert live_images(clip, Folding(clip)) is None


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
