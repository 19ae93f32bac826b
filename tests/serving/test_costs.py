"""Which forwards are shared, and which experts are built, by what both take."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.costs import Costs, Payoff

COSTS = Costs(built=(6.0, 2.0), live=(9.0, 2.0), per_expert=2.0)


@pytest.mark.parametrize(
    ("counts", "is_built", "joins"),
    [
        ([1, 1], True, False),  # 6 against (9 + 2 + 2) / 2
        ([1, 1, 1, 1], True, True),
        ([1, 15], True, True),
        ([8, 8], True, False),
        ([16], True, False),
        ([1, 1], False, True),
        ([8, 8], False, True),
    ],
)
def test_images_share_a_forward_where_each_takes_less_of_it(counts: list[int], is_built: bool, joins: bool) -> None:
    assert COSTS.joins(counts, is_built=is_built) is joins


def test_costs_are_what_forwards_took(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("serving.costs.time.perf_counter", lambda: clock[0])

    def built(num_images: int) -> None:
        clock[0] += COSTS.built_s(num_images)

    def live(num_images: int, num_experts: int) -> None:
        clock[0] += COSTS.live_s(num_images, num_experts)

    assert Costs.measured(built, live) == COSTS


def test_an_expert_is_due_once_what_was_lost_would_have_built_it_and_then_anew() -> None:
    payoff = Payoff(1.0)
    for _ in range(3):
        payoff.spent("a", 0.3)
        assert not payoff.is_due("a")
    payoff.spent("b", 0.9)
    payoff.spent("a", 0.3)
    assert payoff.is_due("a")
    assert not payoff.is_due("a")
    assert not payoff.is_due("b")
    payoff.built_in(0.5)
    assert payoff.is_due("b")


@given(st.lists(st.floats(-1, 1), max_size=40))
def test_what_was_lost_never_falls_below_nothing(amounts: list[float]) -> None:
    payoff, lost = Payoff(1e9), 0.0
    for amount in amounts:
        payoff.spent("a", amount)
        lost = max(0.0, lost + amount)
    payoff.built_in(lost + 1e-9)
    assert not payoff.is_due("a")
    payoff.built_in(lost)
    assert payoff.is_due("a") is (lost > 0)
