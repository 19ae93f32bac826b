"""Held-out images: what they are, and what they tell of temperature and need."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from training.frozen import FROZEN, frozen_right, linear_probe
from training.held_out import HeldOutFigures, fit_temperature, head_temperature, held_out_images


@given(counts=st.lists(st.integers(0, 12), min_size=1, max_size=5))
def test_a_fifth_of_every_class_is_held_out_and_of_few_images_none(counts: list[int]) -> None:
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    out = held_out_images(labels)
    assert [int(out[labels == label].sum()) for label in range(len(counts))] == [count // 5 for count in counts]


@pytest.mark.parametrize("true", [0.5, 1.0, 3.0])
def test_the_temperature_that_made_the_labels_is_found_again(true: float) -> None:
    random = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(4000, 5, generator=random, dtype=torch.float64)
    labels = torch.multinomial((logits / true).softmax(1), 1, generator=random)[:, 0]
    assert fit_temperature(logits, labels) == pytest.approx(true, rel=0.1)


def test_few_images_move_the_temperature_little() -> None:
    sure_and_right = torch.tensor([[9.0, 0.0]] * 2)
    labels = torch.zeros(2, dtype=torch.int64)
    assert fit_temperature(sure_and_right, labels) == pytest.approx(1.0, abs=0.05)
    assert fit_temperature(sure_and_right[:0], labels[:0]) == pytest.approx(1.0, abs=0.02)


def test_a_head_that_has_seen_too_little_to_be_measured_keeps_its_scores() -> None:
    features = torch.nn.functional.normalize(torch.randn(3, 4, generator=torch.Generator().manual_seed(0)), dim=1)
    assert math.isfinite(head_temperature(features, torch.arange(3), 3))


def test_figures_come_back_from_a_state_and_need_is_more_than_the_error_bars() -> None:
    figures = HeldOutFigures(80.0, 1.25, 0.9, 0.8, 0.1, 0.06)
    assert HeldOutFigures.from_tensor(figures.tensor()) == figures
    assert figures.needed
    assert not HeldOutFigures(80.0, 1.0, 0.9, 0.8, 0.1, 0.1).needed


def test_what_the_frozen_base_gets_is_right_where_classes_are_apart() -> None:
    random = torch.Generator().manual_seed(1)
    labels = torch.arange(60) % 3
    features = torch.nn.functional.normalize(torch.eye(6)[labels] + 0.1 * torch.randn(60, 6, generator=random), dim=1)
    for name in FROZEN:
        assert np.mean(frozen_right(name, features[:45], labels[:45], features[45:], labels[45:], 3)) == 1.0
    weights, offsets = linear_probe(features, labels, 3)
    assert (weights.shape, offsets.shape) == ((3, 6), (3,))
