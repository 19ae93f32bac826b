"""Padding the kernel gives what padding the image gives, in both directions."""

from __future__ import annotations

import copy
import importlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers.conv2d_same import Conv2dSame
from torch import nn

from fusion.answers.same_padding import widen_kernels
from fusion.store import Store
from tests.fusion.answers.test_folding import TIMM_CFG, clip_of


@settings(max_examples=60, deadline=None)
@given(
    size=st.tuples(st.integers(3, 12), st.integers(3, 12)),
    kernel=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    depthwise=st.booleans(),
)
def test_results_and_gradients_are_those_of_padded_images(
    size: tuple[int, int], kernel: tuple[int, int], stride: tuple[int, int], depthwise: bool
) -> None:
    torch.manual_seed(0)
    plain = Conv2dSame(4, 4, kernel, stride, groups=4 if depthwise else 1)  # type: ignore[arg-type]
    wide = widen_kernels(copy.deepcopy(plain))
    images = torch.randn(2, 4, *size)
    expected, found = plain(images), wide(images)
    torch.testing.assert_close(found, expected)
    weights = torch.randn_like(expected)
    (expected * weights).sum().backward()
    (found * weights).sum().backward()
    for one, other in zip(plain.parameters(), wide.parameters(), strict=True):
        torch.testing.assert_close(other.grad, one.grad, rtol=1e-4, atol=1e-4)


def test_every_such_layer_of_a_model_does_it_and_no_image_is_padded(
    local_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = clip_of(local_store, TIMM_CFG)
    assert any(isinstance(module, Conv2dSame) for module in clip.model.modules())

    def refuse(*_: object) -> None:
        raise AssertionError("an image was padded")

    monkeypatch.setattr(importlib.import_module("timm.layers.conv2d_same"), "conv2d_same", refuse)
    assert clip.image_features(torch.randn(2, 3, 32, 32)).isfinite().all()


def test_other_layers_stay_as_they_are() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), Conv2dSame(4, 4, 3, dilation=2))
    kinds = [type(module) for module in model]
    assert [type(module) for module in widen_kernels(model)] == kinds  # type: ignore[arg-type]
