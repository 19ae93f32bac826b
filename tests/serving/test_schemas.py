"""What a request's fields mean together."""

from __future__ import annotations

import pytest

from fusion.answers.label_spaces import Query
from fusion.answers.prompts import DEFAULT_TEMPLATES
from fusion.errors import ConduError, ConfigError, LabelSpaceError
from fusion.store.address import StoreAddress
from serving.errors import RequestError
from serving.options import ReplicaOptions, ServiceOptions
from serving.schemas import PredictFields

Items = list[tuple[str, str]]


def query_of(items: Items) -> Query:
    return PredictFields.read(items).query(default_top_k=4, max_top_k=8, max_texts=6)


@pytest.mark.parametrize(
    ("items", "space"),
    [
        ([], "seen"),
        ([("task", "pets")], "task"),
        ([("labels", "cat"), ("labels", "dog")], "labels"),
        ([("label_space", "seen")], "seen"),
        ([("label_space", ""), ("task", ""), ("top_k", "")], "seen"),  # what an HTML form sends for fields left empty
    ],
)
def test_the_label_space_follows_from_what_is_given(items: Items, space: str) -> None:
    assert query_of(items).label_space == space


def test_labels_may_be_repeated_or_one_json_array() -> None:
    repeated = query_of([("labels", "a cat, sitting"), ("labels", "dog")])
    assert repeated == query_of([("labels", '["a cat, sitting", "dog"]')])
    assert repeated.labels == ("a cat, sitting", "dog")  # a comma is part of a name
    assert repeated.templates == DEFAULT_TEMPLATES


@pytest.mark.parametrize(
    ("items", "error", "says"),
    [
        ([("task", "pets"), ("labels", "cat")], LabelSpaceError, "task and labels contradict"),
        ([("templates", "a {}.")], LabelSpaceError, "takes no templates"),
        ([("labels", "a"), ("templates", "{} {x}")], LabelSpaceError, "no other braces"),
        ([("labels", "a"), ("templates", "{0}")], LabelSpaceError, "no other braces"),
        (
            [("labels", "a"), ("labels", "b"), ("templates", '["{}", "a {}", "b {}", "c {}"]')],
            LabelSpaceError,
            "8 texts",
        ),
        ([("top_k", "9")], LabelSpaceError, "at most 8"),
        ([("top_k", "0")], RequestError, "top_k"),
        ([("top_k", "many")], RequestError, "top_k"),
        ([("version", "-1")], RequestError, "version"),
        ([("label_space", "all")], RequestError, "label_space"),
        ([("lables", "cat")], RequestError, "lables: there is no such field"),
        ([("task", "a"), ("task", "b")], RequestError, "given 2 times"),
        ([("labels", '["a", ')], RequestError, "JSON array"),
        ([("labels", "[1, 2]")], RequestError, "array of strings"),
        ([("labels", "x" * 300)], RequestError, "labels.0"),
    ],
)
def test_a_request_that_contradicts_itself_says_what_and_why(items: Items, error: type[ConduError], says: str) -> None:
    with pytest.raises(error, match=says):
        query_of(items)


def test_options_that_can_not_work_are_refused_all_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        ServiceOptions(address=StoreAddress("x"), port=0, max_images=0, poll_s=-1, top_k=99)
    for part in ("port is 0", "max_images is 0", "poll_s is -1", "top_k (99)"):
        assert part in str(caught.value)
    with pytest.raises(ConfigError, match="max: 2 is below min: 3"):
        ReplicaOptions(min=3, max=2)
