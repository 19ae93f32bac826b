"""Drift: quiet where images come from what was trained, loud where they do not, and about the right task."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fusion.answers.drift import FEWEST_IMAGES, Drift, Thresholds, holm, kolmogorov_smirnov, measure_drift
from fusion.answers.evidence import MAX_HELD_OUT, measure_evidence
from fusion.answers.router import Router

DIMENSIONS = 16
TASKS = ("a", "b", "c", "d")


def images(task: int, count: int, random: torch.Generator, *, shift: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit features of a task's two classes, moved by `shift` to where no task's classes are."""
    labels = torch.randint(2, (count,), generator=random)
    centres = torch.eye(DIMENSIONS)[2 * task + labels] + shift * torch.eye(DIMENSIONS)[-1]
    features = centres + 0.15 * torch.randn(count, DIMENSIONS, generator=random)
    return torch.nn.functional.normalize(features, dim=1), labels


def router(seed: int = 0, *, count: int = 200, tasks: tuple[str, ...] = TASKS) -> Router:
    random = torch.Generator().manual_seed(seed)
    return Router({name: measure_evidence(*images(i, count, random), 2) for i, name in enumerate(tasks)})


def asked(router: Router, *features: torch.Tensor, named: bool = True) -> Drift:
    """The images of each task in turn."""
    owners = [TASKS[i] for i, own in enumerate(features) for _ in own]
    among = [[owner] if named else None for owner in owners]
    return measure_drift(router, torch.cat(features), among, [named] * len(owners), Thresholds())


values = st.lists(st.integers(0, 12), min_size=1, max_size=12)


@given(reference=values, sample=values)
def test_the_statistic_is_the_largest_excess_of_the_reference_s_distribution(
    reference: list[int], sample: list[int]
) -> None:
    first, second = np.array(reference), np.array(sample)
    wanted = max((first <= x).mean() - (second <= x).mean() for x in range(-1, 13))
    found, p_value = kolmogorov_smirnov(first, second, num_reference=len(first))
    assert found == pytest.approx(max(0.0, wanted))
    assert 0 <= p_value <= 1


@pytest.mark.parametrize(("num_reference", "num_sample"), [(30, 20), (200, 50), (1000, 400)])
def test_p_values_of_equal_distributions_are_no_smaller_than_they_say(num_reference: int, num_sample: int) -> None:
    random = np.random.default_rng(0)
    p_values = np.array(
        [
            kolmogorov_smirnov(random.random(num_reference), random.random(num_sample), num_reference=num_reference)[1]
            for _ in range(2000)
        ]
    )
    for alpha in (0.01, 0.05, 0.2):
        assert (p_values < alpha).mean() <= alpha + 3 * np.sqrt(alpha * (1 - alpha) / len(p_values))


@given(st.lists(st.none() | st.floats(0, 1), max_size=8))
def test_corrected_p_values_are_no_smaller_and_keep_their_order(
    given: list[float | None],
) -> None:
    found = holm(given)
    tested = [(p, q) for p, q in zip(given, found, strict=True) if p is not None and q is not None]
    assert [q is None for q in found] == [p is None for p in given]
    assert all(p <= q <= 1 for p, q in tested)
    ordered = [q for _, q in sorted(tested)]
    assert ordered == sorted(ordered)
    if tested:
        assert min(q for _, q in tested) == min(1.0, len(tested) * min(p for p, _ in tested))


@pytest.mark.parametrize("named", [True, False])
def test_images_like_those_of_training_are_called_drifted_no_more_often_than_alpha(named: bool) -> None:
    random = torch.Generator().manual_seed(1)
    alarms = 0
    for seed in range(40):
        found = asked(router(seed), *(images(i, 80, random)[0] for i in range(4)), named=named)
        assert [one.num_images for one in found.tasks] == [80] * 4
        alarms += found.drifted
        assert found.no_known_task < 0.1
    assert alarms <= 2  # 0.4 are expected at most


@pytest.mark.parametrize("named", [True, False])
def test_a_task_whose_images_have_changed_is_called_drifted_and_the_others_are_not(named: bool) -> None:
    random = torch.Generator().manual_seed(2)
    features = [images(i, 80, random, shift=0.6 if i == 1 else 0.0)[0] for i in range(4)]
    found = asked(router(), *features, named=named)
    assert [one.task for one in found.tasks if one.drifted] == ["b"]
    (changed,) = (one for one in found.tasks if one.drifted)
    assert changed.p_value is not None
    assert changed.p_value < 1e-6
    assert changed.unfamiliar > 0.3
    assert changed.num_named == (80 if named else 0)
    assert (np.diff(changed.familiarity) >= 0).all()


def test_images_of_no_task_are_familiar_to_none_whatever_they_are_asked_as() -> None:
    random = torch.Generator().manual_seed(3)
    foreign = torch.nn.functional.normalize(-torch.rand(100, DIMENSIONS, generator=random), dim=1)
    own = images(0, 100, random)[0]
    among = [[]] * 100 + [["a"]] * 100
    found = measure_drift(router(), torch.cat([foreign, own]), among, [False] * 100 + [True] * 100, Thresholds())
    assert (found.num_images, found.num_of_no_task) == (200, 100)
    assert 0.5 <= found.no_known_task < 0.55
    assert not found.drifted  # nobody said that they were of a task


def test_images_are_counted_to_the_likeliest_of_the_tasks_that_they_were_asked_of() -> None:
    random = torch.Generator().manual_seed(4)
    features = images(0, 6, random)[0]
    among = [None, ["b"], ["b", "a"], ["gone"], ["gone", "c"], []]
    found = measure_drift(router(), features, among, [False] * 6, Thresholds())
    assert [one.num_images for one in found.tasks] == [2, 1, 1, 0]
    assert found.num_of_no_task == 2


def test_few_images_and_images_without_held_out_distances_are_not_judged() -> None:
    random = torch.Generator().manual_seed(5)
    changed = images(0, FEWEST_IMAGES, random, shift=0.8)[0]
    assert asked(router(), changed).tasks[0].drifted
    found = asked(router(), changed[1:]).tasks[0]
    assert (found.p_value, found.drifted) == (None, False)
    assert found.shift > 0.5
    alone = Router({"a": measure_evidence(torch.eye(DIMENSIONS)[:1], torch.zeros(1, dtype=torch.int64), 1)})
    assert asked(alone, changed).tasks[0].p_value is None


def test_a_shift_that_is_sure_and_small_is_no_drift() -> None:
    random = torch.Generator().manual_seed(6)
    one = router(count=3000, tasks=("a",))
    assert len(one.evidence("a").held_out) == MAX_HELD_OUT
    found = asked(one, images(0, 4000, random, shift=0.2)[0]).tasks[0]
    assert found.p_value is not None
    assert found.p_value < 0.01
    assert 0 < found.shift < 0.1
    assert not found.drifted
