"""Texts that the model cuts are reported; labels that it can't tell apart are refused with both."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fusion.answers.label_spaces import Query
from fusion.answers.predictor import Predictor
from fusion.answers.tokens import TextCheck, tokenizer_of
from fusion.errors import DataError, LabelSpaceError
from fusion.store import Store
from fusion.store.node_cache import NodeCache
from tests.fusion.published import publish_tasks
from tests.tiny import MODEL_CFG, picture, tiny_task
from training.data.task_data import load_task_data, with_checked_texts

TOKENIZER = tokenizer_of(MODEL_CFG)
"""It reads 16 tokens: a start, 14 of the text, an end."""
LONG = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen"
JUST_SO = LONG.removesuffix(" fifteen")


def test_a_text_is_cut_from_one_token_beyond_the_limit() -> None:
    fits, cut = (TextCheck(TOKENIZER, [text, "cat"], ["{}"]) for text in (JUST_SO, LONG))
    assert (fits.cut, fits.warning()) == ({}, None)
    assert cut.cut == {LONG: 17}
    assert "reads 16 tokens of a text and cuts 'one two" in str(cut.warning())
    assert "(17 tokens)" in str(cut.warning())


def test_a_template_counts_and_so_does_every_label_in_it() -> None:
    labels = [f"{number} {JUST_SO.removesuffix(' fourteen')}" for number in "abcdef"]
    assert TextCheck(TOKENIZER, labels, ["{}"]).cut == {}
    assert len(TextCheck(TOKENIZER, labels, ["{}", "photo {}"]).cut) == 6


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Cat", "cat"),
        ("big cat", " big  cat "),
        ("a < b", "a &lt; b"),
        ("\ufb01sh", "fish"),
        ("caf\u00e9", "cafe\u0301"),
    ],
)  # fmt: skip
def test_labels_that_become_the_same_tokens_are_found(one: str, other: str) -> None:
    check = TextCheck(TOKENIZER, [one, "dog", other], ["a photo of a {}.", "{}"])
    assert check.same == [[one, other]]
    assert f"the labels {one!a}, {other!a} become the same tokens" in str(check.problem())


def test_labels_that_differ_are_not_the_same() -> None:
    assert TextCheck(TOKENIZER, ["cat", "cats", "kat", "c at"], ["a photo of a {}."]).problem() is None


def test_labels_that_differ_only_behind_the_cut_are_the_same() -> None:
    check = TextCheck(TOKENIZER, [f"{LONG} red", f"{LONG} blue"], ["{}"])
    assert "become the same tokens once they are cut" in str(check.problem())


def test_a_task_whose_classes_become_the_same_tokens_is_refused(tmp_path: Path) -> None:
    data = load_task_data("t", tiny_task(tmp_path, num_train=1, num_test=1), classes=["a", "b", "&lt;", "<"])
    with pytest.raises(DataError, match=r"task 't': the labels '&lt;', '<' become the same tokens"):
        with_checked_texts(data, MODEL_CFG)


def test_a_task_whose_prompts_are_cut_has_a_warning(tmp_path: Path) -> None:
    data = load_task_data("t", tiny_task(tmp_path, num_train=1, num_test=1), classes=["a", "b", LONG, "d"])
    assert data.warnings == ()
    checked = with_checked_texts(data, MODEL_CFG)
    assert checked.sha256 == data.sha256
    assert "WARNING: the model reads 16 tokens" in checked.summary()


def test_an_answer_says_that_a_text_was_cut_and_refuses_what_can_t_be_told_apart(
    local_store: Store, tmp_path: Path
) -> None:
    publish_tasks(local_store, tmp_path)
    predictor = Predictor(NodeCache(local_store, tmp_path / "cache"))
    images = [picture("red", np.random.default_rng(0))]
    (plain,) = predictor.predict(images, Query("labels", labels=("red", "blue")))
    assert plain.warnings == ()
    (cut,) = predictor.predict(images, Query("labels", labels=("red", LONG)))
    assert "reads 16 tokens" in cut.warnings[0]
    with pytest.raises(LabelSpaceError, match="the labels 'Red', 'red' become the same tokens"):
        predictor.predict(images, Query("labels", labels=("Red", "blue", "red")))
