"""Several views of one object, answered together."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fusion.answers.label_spaces import VIEWS, Query
from fusion.answers.predictor import Predictor
from fusion.answers.rules.ranking import Opinion
from fusion.answers.rules.views import together
from fusion.errors import LabelSpaceError
from fusion.store import Store, open_store
from fusion.store.node_cache import NodeCache
from tests.serving.helpers import pictures, publish_tasks


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = open_store(str(tmp_path_factory.mktemp("store")))
    publish_tasks(store, evidence=True, heads=("pair",))
    return store


def _opinion(**probabilities: float) -> Opinion:
    return Opinion([(None, name) for name in probabilities], torch.tensor(list(probabilities.values())))


def _said(opinion: Opinion) -> dict[str, float]:
    return {name: p for (_, name), p in zip(opinion.candidates, opinion.probabilities.tolist(), strict=True)}


def test_mean_is_of_log_probabilities() -> None:
    found = _said(together([_opinion(a=0.9, b=0.1), _opinion(a=0.4, b=0.6)], "mean"))
    odds = math.sqrt(0.9 * 0.4 / (0.1 * 0.6))
    assert found == pytest.approx({"a": odds / (1 + odds), "b": 1 / (1 + odds)}, abs=1e-6)


def test_max_lets_the_surest_view_decide() -> None:
    views = [_opinion(a=0.4, b=0.6), _opinion(a=0.45, b=0.55), _opinion(a=0.98, b=0.02)]
    assert max(_said(together(views, "max")).items(), key=lambda one: one[1])[0] == "a"
    assert _said(together(views, "max"))["a"] == pytest.approx(0.98 / (0.98 + 0.6), abs=1e-6)


def test_what_one_view_did_not_consider_is_barely_possible_there() -> None:
    found = _said(together([_opinion(a=0.5, b=0.5), _opinion(b=0.5, c=0.5)], "mean"))
    assert max(found, key=lambda name: found[name]) == "b"
    assert found["b"] > 0.95


@given(
    st.lists(st.lists(st.floats(1e-3, 1), min_size=3, max_size=3), min_size=1, max_size=5), st.sampled_from(VIEWS[:2])
)
def test_the_order_of_views_does_not_matter_and_probabilities_sum_to_one(rows: list[list[float]], how: str) -> None:
    views = [_opinion(**{name: p / sum(row) for name, p in zip("abc", row, strict=True)}) for row in rows]
    found = together(views, how)
    assert float(found.probabilities.sum()) == pytest.approx(1)
    assert _said(together(views[::-1], how)) == pytest.approx(_said(found))


@pytest.mark.parametrize("query", [Query("task", task="colours"), Query("task", task="pair"), Query("seen")])
@pytest.mark.parametrize("how", VIEWS)
def test_views_that_are_one_image_are_answered_like_that_image(store: Store, query: Query, how: str) -> None:
    predictor, image = Predictor(NodeCache(store)), pictures("red")[0]
    (alone,) = predictor.predict([image], query)
    (found,) = predictor.predict([image] * 3, replace(query, views=how))
    assert found.label == alone.label
    assert found.experts == alone.experts
    assert found.forwards == 3 * alone.forwards
    if how != "max":  # which renormalises over all that any view thought of
        assert found.probability == pytest.approx(alone.probability, abs=1e-4)


@pytest.mark.parametrize("rule", ["matched", "mean"])
@pytest.mark.parametrize("how", VIEWS)
def test_different_views_get_one_answer(store: Store, rule: str, how: str) -> None:
    query = Query("labels", labels=("red", "circle", "a boat"), rule=rule, views=how)
    (found,) = Predictor(NodeCache(store)).predict(pictures("red", "circle"), query)
    assert sum(p for *_, p in found.top) == pytest.approx(1, abs=1e-6)
    assert {label for _, label, _ in found.top} == {"red", "circle", "a boat"}


def test_an_unknown_way_is_refused(store: Store) -> None:
    with pytest.raises(LabelSpaceError, match="'mean-feature'"):
        Predictor(NodeCache(store)).predict(pictures("red"), Query("seen", views="median"))
