"""Folded models answer as the plain ones do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from fusion.answers.clip import Clip, build_clip
from fusion.answers.folding import Folding
from fusion.store import Store
from fusion.store.node_cache import NodeCache
from tests.tiny import BATCH_NORM_CFG, MODEL_CFG, tiny_base

TIMM_CFG: dict[str, Any] = {
    **MODEL_CFG,
    "vision_cfg": {
        "image_size": 32,
        "timm_model_name": "tf_efficientnet_lite0",
        "timm_model_pretrained": False,
        "timm_pool": "",
        "timm_proj": "linear",
    },
}


def clip_of(store: Store, cfg: dict[str, Any]) -> Clip:
    """A model whose BatchNorms have statistics and gains that matter."""
    base = tiny_base(store, model_cfg=cfg)
    clip, noise = build_clip(base, NodeCache(store).tensors(base.weights)), torch.Generator().manual_seed(3)
    with torch.no_grad():
        for module in clip.model.modules():
            if isinstance(module, nn.BatchNorm2d):
                for tensor in (module.weight, module.bias, module.running_mean):
                    assert tensor is not None
                    tensor.add_(0.2 * torch.randn(tensor.shape, generator=noise))
                assert module.running_var is not None
                module.running_var.mul_(0.5 + torch.rand(module.running_var.shape, generator=noise))
    return clip


@pytest.mark.parametrize("cfg", [TIMM_CFG, BATCH_NORM_CFG], ids=["timm", "resnet"])
def test_features_are_the_plain_models_and_no_batch_norm_is_left(cfg: dict[str, Any], local_store: Store) -> None:
    clip = clip_of(local_store, cfg)
    images = torch.randn(3, 3, 32, 32)
    plain = clip.image_features(images)
    folded = Folding(clip).folded(clip)
    torch.testing.assert_close(folded.image_features(images), plain, rtol=0, atol=2e-5)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.model.modules())
    torch.testing.assert_close(clip.image_features(images), plain, rtol=0, atol=0)  # the given one is as it was


def test_a_folding_serves_other_weights_of_the_architecture(local_store: Store) -> None:
    clip = clip_of(local_store, BATCH_NORM_CFG)
    folding = Folding(clip)
    other = clip.copy_with([(name, value * 1.1) for name, value in clip.model.state_dict().items() if "bn" in name])
    images = torch.randn(2, 3, 32, 32)
    assert not torch.allclose(other.image_features(images), clip.image_features(images), atol=1e-3)
    torch.testing.assert_close(
        folding.folded(other).image_features(images), other.image_features(images), rtol=0, atol=2e-5
    )


def test_a_model_without_batch_norm_is_left_as_it_is(local_store: Store) -> None:
    clip = clip_of(local_store, MODEL_CFG)
    assert Folding(clip).folded(clip) is clip


def test_an_architecture_that_uses_a_convolutions_result_twice_is_left_as_it_is(
    local_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = clip_of(local_store, BATCH_NORM_CFG)
    block = next(module for name, module in clip.model.named_modules() if name == "visual.layer1.0")
    kind: Any = type(block)

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        once = self.conv1(x).amax()
        return plain(self, x) * (1 + once)

    plain = kind.forward
    monkeypatch.setattr(kind, "forward", forward)
    assert Folding(clip).folded(clip) is clip
