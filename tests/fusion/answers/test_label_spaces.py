"""Label spaces: which experts see which images, what their logits become, and what is refused."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from fusion.answers.label_spaces import Query, needs_base
from fusion.answers.prototypes import class_prototypes, route_scores, top_tasks
from fusion.answers.rules import answer, plan
from fusion.answers.view import TaskView, View
from fusion.errors import LabelSpaceError, UnknownTaskError

E = torch.eye(4)


def view(**tasks: tuple[tuple[str, ...], torch.Tensor | None]) -> View:
    views = {n: TaskView(n, classes, ("a {}.",), f"{n}@1", protos) for n, (classes, protos) in tasks.items()}
    return View(cast(Any, SimpleNamespace(version=3, base=SimpleNamespace(model_cfg=None))), views)


PETS_AND_FOOD = view(pets=(("cat", "dog"), E[:2]), food=(("pie", "cat"), E[2:]), plain=((), None))


def test_task_asks_the_named_expert_alone_and_not_the_base() -> None:
    query = Query("task", task="pets")
    assert not needs_base(query, PETS_AND_FOOD)
    steps = plan(query, PETS_AND_FOOD, None, num_images=2)
    assert [(job.task, job.images, job.classes) for job in steps.jobs] == [("pets", (0, 1), ("cat", "dog"))]
    first, second = answer(steps, [torch.tensor([[1.0, 3.0], [2.0, 0.0]])])
    assert (first.label, first.task, first.experts) == ("dog", "pets", ("pets",))
    assert second.label == "cat"
    assert first.probability == pytest.approx(torch.tensor([1.0, 3.0]).softmax(0)[1].item())


def test_labels_take_the_mean_of_the_base_and_the_routed_experts() -> None:
    query = Query("labels", labels=("x", "y"), top_k=1)
    steps = plan(query, PETS_AND_FOOD, E[[0, 2]], num_images=2)
    assert steps.consulted == (("pets",), ("food",))
    assert [(job.task, job.images) for job in steps.jobs] == [(None, (0, 1)), ("pets", (0,)), ("food", (1,))]
    base, pets, food = torch.tensor([[4.0, 0.0], [0.0, 4.0]]), torch.tensor([[0.0, 2.0]]), torch.tensor([[6.0, 0.0]])
    first, second = answer(steps, [base, pets, food])
    assert (first.label, first.task) == ("x", None)  # means 2.0 and 1.0
    assert second.label == "x"  # means 3.0 and 2.0


def test_seen_scores_a_class_by_the_base_and_its_own_expert() -> None:
    query = Query("seen", top_k=2)
    steps = plan(query, PETS_AND_FOOD, E[[0]], num_images=1)
    assert steps.consulted == (("pets", "food"),)
    base_pets, pets = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0]])
    base_food, food = torch.tensor([[0.0, 1.0]]), torch.tensor([[0.0, 5.0]])
    (prediction,) = answer(steps, [base_pets, pets, base_food, food])
    assert (prediction.label, prediction.task) == ("cat", "food"), "the pair says whose cat it is"
    assert prediction.top[0][:2] == ("food", "cat")
    assert sum(p for _, _, p in prediction.top) == pytest.approx(1.0)


def test_a_task_of_plain_weights_is_never_routed_to() -> None:
    steps = plan(Query("labels", labels=("x",), top_k=9), PETS_AND_FOOD, E[:1], num_images=1)
    assert set(steps.consulted[0]) == {"pets", "food"}


def test_labels_work_on_a_version_without_any_task_to_route_to() -> None:
    empty = view(plain=((), None))
    steps = plan(Query("labels", labels=("x", "y")), empty, E[:1], num_images=1)
    (prediction,) = answer(steps, [torch.tensor([[1.0, 2.0]])])
    assert (prediction.label, prediction.experts) == ("y", ())


@pytest.mark.parametrize(
    ("query", "message"),
    [
        (Query("classes"), "'classes' does not exist"),
        (Query("task"), "needs the name of a task"),
        (Query("task", task="plain"), "has no classes"),
        (Query("labels"), "needs at least one label"),
        (Query("labels", labels=("a", " ")), "is empty"),
        (Query("labels", labels=("a", "b", "a")), "'a' is given twice"),
        (Query("labels", labels=("a",), templates=("photo",)), "must have one '{}'"),
        (Query("labels", labels=("a",), task="pets"), "takes no task"),
        (Query("seen", labels=("a",)), "takes no labels"),
        (Query("seen", top_k=0), "top_k is 0"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_makes_no_sense_is_refused_with_what_would(query: Query, message: str) -> None:
    with pytest.raises(LabelSpaceError, match=message):
        query.check(PETS_AND_FOOD)


def test_an_unknown_task_is_told_with_the_nearest_one() -> None:
    with pytest.raises(UnknownTaskError, match="did you mean pets"):
        Query("task", task="pet").check(PETS_AND_FOOD)
    with pytest.raises(LabelSpaceError, match="give labels"):
        Query("seen").check(view())


def test_a_prototype_is_half_image_half_text_and_all_text_without_images() -> None:
    protos = class_prototypes(E[[0, 0]], torch.tensor([0, 0]), E[[1, 2]])
    torch.testing.assert_close(protos[0], torch.nn.functional.normalize(E[0] + E[1], dim=0))
    torch.testing.assert_close(protos[1], E[2])


def test_a_tasks_score_is_its_best_prototype_and_ties_go_to_the_older_task() -> None:
    scores = route_scores(E[[0]], {"a": E[[1]], "b": E[[0, 3]], "c": E[[0]]})
    assert scores.tolist() == [[0.0, 1.0, 1.0]]
    assert top_tasks(scores, 2).tolist() == [[1, 2]]
