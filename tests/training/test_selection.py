"""Images to label are chosen for what they tell about others, and only where that is not known yet."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from training.selection import answer_by_labelled, entropy, select


def unit(*rows: int, size: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(*rows, size, generator=generator), dim=-1)


def groups(each: int, *, size: int = 8, spread: float = 0.05) -> tuple[torch.Tensor, torch.Tensor]:
    """Four groups of images that look alike, and whose each is."""
    centres = torch.eye(size)[:4]
    of = torch.arange(4).repeat_interleave(each)
    noise = torch.randn(4 * each, size, generator=torch.Generator().manual_seed(1))
    return normalize(centres[of] + spread * noise, dim=1), of


def test_one_image_of_each_group_comes_first() -> None:
    features, of = groups(10)
    picks = select(features, 4)
    assert sorted(of[[pick.index for pick in picks]].tolist()) == [0, 1, 2, 3]


def test_an_image_that_only_looks_odd_waits() -> None:
    features, _ = groups(10)
    odd = normalize(torch.eye(8)[7:] - 0.3, dim=1)
    picks = select(torch.cat([odd, features]), 4)
    assert 0 not in [pick.index for pick in picks]


def test_what_is_labelled_is_spoken_for() -> None:
    features, of = groups(10)
    picks = select(features, 3, labelled=features[of == 2][:1])
    assert sorted(of[[pick.index for pick in picks]].tolist()) == [0, 1, 3]


def test_the_uncertain_group_comes_first() -> None:
    features, of = groups(10)
    doubts = torch.where(of == 3, 1.0, 0.1)
    assert of[select(features, 1, uncertainty=doubts)[0].index] == 3


@settings(max_examples=30, deadline=None)
@given(number=st.integers(4, 9), budget=st.integers(1, 4), seed=st.integers(0, 1000), doubtful=st.booleans())
def test_the_choice_is_within_its_bound_of_the_best(number: int, budget: int, seed: int, doubtful: bool) -> None:
    """The lazy queue against every choice there is: greedy gives at least 1 - 1/e of the best."""
    features = unit(number, size=4, seed=seed)
    doubts = torch.rand(number, generator=torch.Generator().manual_seed(seed)) if doubtful else None
    weights = torch.ones(number) if doubts is None else (1 + doubts) / 2
    centred = normalize(features - features.mean(0), dim=1)
    alike = (centred @ centred.T).clamp(min=0) ** 3

    def worth(chosen: tuple[int, ...]) -> float:
        return float(alike[list(chosen)].amax(0) @ weights)

    picks = select(features, budget, uncertainty=doubts)
    assert len({pick.index for pick in picks}) == len(picks) == min(budget, number)
    assert sum(pick.gain for pick in picks) == pytest.approx(worth(tuple(pick.index for pick in picks)), abs=1e-4)
    assert all(later.gain <= earlier.gain + 1e-4 for earlier, later in itertools.pairwise(picks))
    best = max(worth(chosen) for chosen in itertools.combinations(range(number), len(picks)))
    assert worth(tuple(pick.index for pick in picks)) >= (1 - 1 / np.e) * best - 1e-4


def test_entropy_is_a_share_of_a_guess() -> None:
    answers = torch.tensor([[0.25, 0.25, 0.25, 0.25], [1.0, 0, 0, 0], [0.5, 0.5, 0, 0]])
    assert entropy(answers).tolist() == pytest.approx([1, 0, 0.5])
    assert entropy(torch.ones(3, 1)).tolist() == [0, 0, 0]


def test_labelled_images_answer_for_those_like_them() -> None:
    features, of = groups(10)
    known = [0, 1, 10, 11, 20, 21, 30, 31]
    answers = answer_by_labelled(features, features[known], of[known], 4)
    assert answers.argmax(1).tolist() == of.tolist()
    assert torch.allclose(answers.sum(1), torch.ones(40, dtype=torch.float64))
