"""Rule `matched`: the base for what nobody was taught, the right expert for the rest, as its equations say."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast, get_args, get_type_hints

import pytest
import torch

from fusion.answers.evidence import measure_evidence
from fusion.answers.label_matching import alias_problems, matched_classes, meanings
from fusion.answers.label_spaces import Query, needs_base
from fusion.answers.options import PredictOptions
from fusion.answers.router import Router, gate
from fusion.answers.rules import RULES, answer, plan
from fusion.answers.view import TaskView, View
from fusion.errors import LabelSpaceError

DIMENSIONS = 8
E = torch.eye(DIMENSIONS)


def images_of(first: int, classes: int, count: int, *, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    features = E[first + labels] + 0.1 * torch.randn(count, DIMENSIONS, generator=random)
    return torch.nn.functional.normalize(features, dim=1), labels


def task(name: str, classes: tuple[str, ...], first: int, *, seed: int, **more: Any) -> TaskView:
    features, labels = images_of(first, len(classes), 60, seed=seed)
    evidence = measure_evidence(features, labels, len(classes))
    return TaskView(name, classes, ("a {}.",), f"{name}@1", evidence.base.means, evidence, **more)


def view_of(*tasks: TaskView) -> View:
    views = {one.name: one for one in tasks}
    router = Router({one.name: one.evidence for one in tasks if one.evidence is not None})
    return View(cast(Any, SimpleNamespace(version=1, base=SimpleNamespace(model_cfg=None))), views, router)


PETS, DIGITS = task("pets", ("cat", "dog"), 0, seed=1), task("digits", ("0", "1", "2"), 3, seed=2)
VIEW = view_of(PETS, DIGITS)
A_PET, A_DIGIT = images_of(0, 2, 1, seed=3)[0], images_of(3, 3, 1, seed=4)[0]
FOREIGN = -E[:1]


def ask(labels: tuple[str, ...]) -> Query:
    return Query("labels", labels=labels, rule="matched")


def test_where_no_label_is_known_the_base_answers_alone_bit_for_bit() -> None:
    steps = plan(ask(("tree", "house")), VIEW, torch.cat([A_PET, A_DIGIT]), num_images=2)
    assert [job.task for job in steps.jobs] == [None]
    assert steps.consulted == ((), ())
    z0 = torch.tensor([[1.25, 3.5], [0.3, -7.0]])
    answers = answer(steps, [z0])
    for prediction, row in zip(answers, z0.softmax(1), strict=True):
        assert prediction.probability == row.max().item()


def test_one_matched_label_is_no_group() -> None:
    steps = plan(ask(("cat", "house")), VIEW, A_PET, num_images=1)
    assert [job.task for job in steps.jobs] == [None]


def test_an_expert_is_asked_only_for_its_own_images_and_only_about_its_own_labels() -> None:
    features = torch.cat([A_PET, A_DIGIT])
    steps = plan(ask(("cat", "tree", "1", "dog", "2")), VIEW, features, num_images=2)
    assert [(job.task, job.images, job.classes) for job in steps.jobs] == [
        (None, (0, 1), ("cat", "tree", "1", "dog", "2")),
        ("pets", (0,), ("cat", "dog")),
        ("digits", (1,), ("1", "2")),
    ]
    assert steps.consulted == (("pets",), ("digits",))
    assert steps.routed == ("pets", "digits")


def test_labels_equal_the_equations() -> None:
    labels = ("cat", "tree", "1", "dog", "2")
    steps = plan(ask(labels), VIEW, A_PET, num_images=1)
    z0, z = torch.tensor([[2.0, 1.0, 0.5, 1.5, 0.0]]), torch.tensor([[0.0, 4.0]])
    (prediction,) = answer(steps, [z0, z])
    assert VIEW.router is not None
    scores = VIEW.router.log_likelihoods(A_PET)[0] / DIMENSIONS**0.5
    r = (scores + torch.tensor([2 / 2, 2 / 3]).double().log()).softmax(0)
    g = torch.stack([gate(VIEW.router.p_values(A_PET, name))[0] for name in ("pets", "digits")])
    p0 = z0[0].double().softmax(0)
    groups = [torch.tensor([0, 3]), torch.tensor([2, 4])]
    b = torch.stack([p0[group].sum() for group in groups])
    b /= b.sum()
    trust = (r * g).sum()
    sigma = trust * r + (1 - trust) * b
    w = (1 + g[0]) / 2
    q = [
        ((1 - w) * z0[0, groups[0]].double() + w * z[0].double()).softmax(0),
        z0[0, groups[1]].double().softmax(0),
    ]
    expected = p0.clone()
    mass = p0[[0, 2, 3, 4]].sum()
    for group, share, inside in zip(groups, sigma, q, strict=True):
        expected[group] = mass * share * inside
    found = {label: p for _, label, p in prediction.top}
    assert found == pytest.approx(dict(zip(labels, expected.tolist(), strict=True)))
    assert sum(p for _, _, p in prediction.top) == pytest.approx(1.0)


def test_the_base_keeps_its_probability_for_labels_that_nobody_was_taught() -> None:
    steps = plan(ask(("cat", "dog", "tree")), VIEW, A_PET, num_images=1)
    z0 = torch.tensor([[1.0, 2.0, 3.0]])
    (prediction,) = answer(steps, [z0, torch.tensor([[50.0, -50.0]])])
    found = {label: p for _, label, p in prediction.top}
    assert found["tree"] == pytest.approx(z0.softmax(1)[0, 2].item())


def test_a_foreign_image_gets_an_expert_no_louder_than_the_base_and_is_unfamiliar() -> None:
    steps = plan(ask(("cat", "dog")), VIEW, torch.cat([FOREIGN, A_PET]), num_images=2)
    assert steps.context.weights[0].max() == 0.5
    assert steps.context.weights[1].max() > 0.9
    foreign, own = answer(steps, [torch.zeros(2, 2), torch.zeros(2, 2)])
    assert foreign.familiarity == 0.0
    assert own.familiarity is not None
    assert own.familiarity > 0.05


def test_seen_gives_each_task_its_share_and_asks_one_expert() -> None:
    query = Query("seen", rule="matched")
    steps = plan(query, VIEW, A_DIGIT, num_images=1)
    assert steps.consulted == (("digits",),)
    logits = [torch.randn(len(job.images), len(job.classes)) for job in steps.jobs]
    (prediction,) = answer(steps, logits)
    assert prediction.task == "digits"
    assert prediction.rule == "matched"
    assert sum(p for _, _, p in prediction.top) == pytest.approx(1.0)


def test_a_class_that_two_tasks_share_is_told_apart_by_the_image() -> None:
    other = task("toys", ("cat", "car"), 5, seed=5)
    view = view_of(PETS, other)
    steps = plan(Query("seen", rule="matched"), view, A_PET, num_images=1)
    logits = [torch.tensor([[5.0, 0.0]]).expand(len(job.images), -1) for job in steps.jobs]
    (prediction,) = answer(steps, logits)
    assert (prediction.task, prediction.label) == ("pets", "cat")


@pytest.mark.parametrize(
    ("labels", "found"),
    [
        ((" Cat ", "DOG"), {0: "cat", 1: "dog"}),
        (("ｃａｔ", "tree", "dog"), {0: "cat", 2: "dog"}),
        (("cats", "doge"), {}),
    ],
)
def test_labels_match_by_their_text_and_by_nothing_else(labels: tuple[str, ...], found: dict[int, str]) -> None:
    assert matched_classes(labels, PETS.meanings) == found


def test_adding_a_task_changes_no_gate_of_another_and_no_answer_where_it_is_named() -> None:
    more = view_of(PETS, DIGITS, task("toys", ("car", "ball"), 6, seed=6))
    assert VIEW.router is not None
    assert more.router is not None
    assert torch.equal(gate(VIEW.router.p_values(A_PET, "pets")), gate(more.router.p_values(A_PET, "pets")))
    z = torch.tensor([[1.0, 2.0]])
    named = [answer(plan(Query("task", task="pets"), view, None, num_images=1), [z]) for view in (VIEW, more)]
    assert named[0] == named[1]


def test_a_version_with_a_task_without_evidence_is_answered_by_the_papers_rule_and_says_so() -> None:
    old = TaskView("old", ("x", "y"), ("{}.",), "old@1", E[6:8])
    view = View(VIEW.manifest, {**VIEW.tasks, "old": old}, None)
    steps = plan(Query("labels", labels=("cat", "dog"), rule="matched", top_k=1), view, A_PET, num_images=1)
    (prediction,) = answer(steps, [torch.zeros(1, 2)] * len(steps.jobs))
    assert prediction.rule == "mean"
    assert prediction.familiarity is None


def test_an_expert_is_asked_in_the_words_that_it_was_taught_and_joined() -> None:
    digits = replace(DIGITS, aliases={"0": ("zero", "nought"), "2": ("two",)}, templates=("the digit {}",))
    steps = plan(
        Query("labels", labels=("Zero", "two", "tree"), templates=("{}!",)),
        view_of(PETS, digits),
        A_DIGIT,
        num_images=1,
    )
    base, expert = steps.jobs
    assert (base.classes, base.templates, base.joined) == (("Zero", "two", "tree"), ("{}!",), False)
    assert (expert.classes, expert.templates, expert.joined) == (("0", "2"), ("the digit {}",), True)
    assert steps.matched == {"digits": {"Zero": "0", "two": "2"}}
    (prediction,) = answer(steps, [torch.zeros(1, 3), torch.tensor([[0.0, 9.0]])])
    assert (prediction.label, prediction.matched) == ("two", steps.matched)


def test_a_class_s_own_name_comes_before_an_alias_of_another() -> None:
    taught = meanings(("jaguar", "cat"), {"cat": ("Jaguar", "kitty")})
    assert matched_classes(("JAGUAR", "Kitty"), taught) == {0: "jaguar", 1: "cat"}


@pytest.mark.parametrize(
    ("aliases", "problem"),
    [
        ({"cow": ["ox"]}, "aliases are given for 'cow', which is no class"),
        ({"cat": [" "]}, "an alias of 'cat' is empty"),
        ({"cat": ["Dog"]}, "alias 'Dog' of 'cat' also means 'dog'"),
        ({"cat": ["pet"], "dog": ["pet"]}, "alias 'pet' of 'dog' also means 'cat'"),
    ],
)
def test_an_alias_means_one_class(aliases: dict[str, list[str]], problem: str) -> None:
    assert alias_problems(("cat", "dog"), aliases) == [problem]


def test_a_task_without_an_expert_is_answered_from_its_evidence_and_costs_no_forward() -> None:
    view = view_of(PETS, replace(DIGITS, has_expert=False))
    labels, dog = ("cat", "dog", "0", "1", "2"), images_of(3, 3, 6, seed=9)
    for query in (Query("labels", labels=labels), Query("seen")):
        steps = plan(query, view, dog[0], num_images=6)
        assert steps.consulted == ((),) * 6
        assert {job.task for job in steps.jobs} == {None}
        answers = answer(steps, [torch.zeros(len(job.images), len(job.classes)) for job in steps.jobs])
        assert [one.label for one in answers] == [str(label) for label in dog[1].tolist()]


def test_a_named_task_without_an_expert_needs_the_base_and_no_model_more() -> None:
    view = view_of(PETS, replace(DIGITS, has_expert=False))
    query = Query("task", task="digits")
    assert needs_base(query, view)
    assert not needs_base(Query("task", task="pets"), view)
    steps = plan(query, view, A_DIGIT, num_images=1)
    assert steps.jobs == ()
    (prediction,) = answer(steps, [])
    assert (prediction.label, prediction.task, prediction.experts) == ("0", "digits", ())


@pytest.mark.parametrize(("rule", "joined"), [("matched", True), ("mean", False)])
def test_the_paper_s_rule_takes_a_named_expert_by_its_texts_alone(rule: str, joined: bool) -> None:
    (job,) = plan(Query("task", task="pets", rule=rule), VIEW, None, num_images=1).jobs
    assert job.joined == joined


def test_other_tasks_change_nothing_where_the_task_is_named() -> None:
    alone, beside = (plan(Query("task", task="pets"), view, None, num_images=2) for view in (view_of(PETS), VIEW))
    assert alone.jobs == beside.jobs
    logits = [torch.tensor([[1.0, 3.0], [2.0, 0.5]])]
    assert answer(alone, logits) == answer(beside, logits)


def test_unknown_is_answered_for_unusual_images_only_where_it_was_asked_for() -> None:
    images = torch.cat([A_PET, FOREIGN])
    for abstain, expected in ((None, (None, None)), (0.05, (False, True))):
        steps = plan(Query("seen", abstain=abstain), VIEW, images, num_images=2)
        logits = [torch.randn(len(job.images), len(job.classes)) for job in steps.jobs]
        usual, foreign = answer(steps, logits)
        assert (usual.unknown, foreign.unknown) == expected
        assert (foreign.label is None) == (foreign.task is None) == bool(foreign.unknown)
        assert foreign.top, "the candidates are told all the same"


def test_familiarity_is_uniform_over_a_task_s_own_images() -> None:
    own, _ = images_of(0, 2, 2000, seed=77)
    steps = plan(Query("seen"), VIEW, own, num_images=2000)
    refused = (steps.context.familiarity < 0.1).double().mean()
    assert 0.05 < refused < 0.2


@pytest.mark.parametrize(
    ("query", "message"),
    [
        (Query("seen", abstain=1.5), "abstain is 1.5: it is the share of familiar images"),
        (Query("labels", labels=("a", "b"), abstain=0.05), "label space 'labels' never answers 'unknown'"),
    ],
)
def test_an_impossible_abstention_says_what_it_is(query: Query, message: str) -> None:
    with pytest.raises(LabelSpaceError, match=message):
        query.check(VIEW)


def test_rules_and_the_option_that_names_them_agree() -> None:
    names = get_args(get_type_hints(PredictOptions)["rule"])
    assert set(names) == set(RULES)
    assert PredictOptions().rule == names[0] == "matched"


def test_a_calibrated_expert_is_as_loud_beside_the_base_as_before() -> None:
    """At a weight of a half the mixture takes T z_t, the uncalibrated expert, and is as sure as both together."""
    assert DIGITS.evidence is not None
    warm = replace(DIGITS, evidence=replace(DIGITS.evidence, temperature=3.0))
    foreign = -E[3:4]
    z0, z = torch.tensor([[2.0, 0.0, 1.0]]), torch.tensor([[0.0, 1.5, 0.5]])
    steps = plan(Query("labels", labels=("0", "1", "2")), view_of(PETS, warm), foreign, num_images=1)
    assert steps.context.weights.tolist() == [[0.5]]
    (prediction,) = answer(steps, [z0, z])
    expected = ((0.5 * z0 + 0.5 * 3 * z) / 2).double().softmax(1)[0]
    found = {label: p for _, label, p in prediction.top}
    assert found == pytest.approx(dict(zip(("0", "1", "2"), expected.tolist(), strict=True)))
