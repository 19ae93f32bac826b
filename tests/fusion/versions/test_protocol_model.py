"""The store's protocol keeps its promises over every interleaving, and every one of its rules is needed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.fusion.versions.protocol_model import FIRST, Rules, broken, explore

ALL = ("c", "d", "R", "G")


@pytest.mark.parametrize("keep", [1, 2])
def test_two_publishers_a_roll_back_a_gc_and_a_reader_keep_every_promise(keep: int) -> None:
    outcome = explore(ALL, Rules(keep=keep))
    assert outcome.broken is None, outcome
    assert outcome.ends == {("done", "done", "done", "done"), ("done", "done", "refused", "done")}
    assert outcome.num_states > 300_000, "nothing was left out"


@pytest.mark.parametrize("actors", [("c", "d", "G"), ("c", "R", "G")], ids="".join)
@pytest.mark.parametrize("keep", [1, 2])
def test_a_crash_a_lost_reply_or_a_lost_write_anywhere_breaks_no_promise(keep: int, actors: tuple[str, ...]) -> None:
    outcome = explore(actors, Rules(keep=keep), faults=1)
    assert outcome.broken is None, outcome
    for i in range(len(actors)):
        assert any(end[i] == "crashed" for end in outcome.ends)


@pytest.mark.soak
@pytest.mark.parametrize("keep", [1, 2])
def test_a_fault_among_all_of_them_breaks_no_promise(keep: int) -> None:
    assert explore(ALL, Rules(keep=keep), faults=1).broken is None


def test_a_loser_may_keep_blobs_that_it_wrote_since_the_last_gc() -> None:
    rules = Rules(losers_write_again=False, loser_minds_last_gc=True)
    for keep in (1, 2):
        assert explore(("c", "d", "G"), replace(rules, keep=keep), faults=1).broken is None


@pytest.mark.parametrize(
    ("without", "actors", "breaks"),
    [
        ({"nonces": False}, ("c", "d", "G"), "names blobs that are gone"),
        ({"heads": False}, ("c",), "names blobs that are gone"),
        ({"gc_publishes": False}, ("c", "G"), "names blobs that are gone"),
        ({"gc_lists_first": False}, ("c", "G"), "names blobs that are gone"),
        ({"losers_write_again": False}, ("c", "G"), "names blobs that are gone"),
        ({"rollback_minds_oldest_kept": False}, ("R", "G"), "names blobs that are gone"),
        ({"commits_are_confirmed": False}, ("c", "d", "G"), "no version descends from what it published"),
        ({"commits_are_confirmed": False}, ("G", "c", "d"), "no version descends from what it published"),
        ({"unsure_keeps_blobs": False}, ("c", "d", "G"), "names blobs that are gone"),
        ({"reader_starts_over": False}, ("R", "G"), "a reader mixes versions"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_without_any_one_rule_a_promise_breaks(without: dict[str, bool], actors: tuple[str, ...], breaks: str) -> None:
    assert explore(actors, faults=1).broken is None, "with the rule it holds"
    outcome = explore(actors, replace(Rules(), **without), faults=1)
    assert breaks in (outcome.broken or "nothing broke"), outcome


def test_the_promise_about_blobs_can_break() -> None:
    assert broken(FIRST, []) is None
    assert "version 2" in (broken(FIRST._replace(blobs=FIRST.blobs - {"b.0"}), []) or "")
