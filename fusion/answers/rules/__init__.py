"""Rules: how images of no named task are answered. One file per rule; `task` needs none.

Three steps, so that the same rules work in a plain loop and on a cluster: `plan` decides which model sees which image
over which classes, the caller runs these jobs, `answer` combines their logits. Free of models, stores and Ray.

Letters: B images, C classes, D dimensions, T tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import torch

from fusion.answers.label_spaces import Job, Plan, Prediction, Query
from fusion.answers.rules.heads import head_logits
from fusion.answers.rules.matched import Matched
from fusion.answers.rules.mean import Mean
from fusion.answers.rules.ranking import Opinion, ranked
from fusion.answers.rules.views import together
from fusion.answers.tokens import check_texts
from fusion.answers.view import View
from fusion.errors import LabelSpaceError


class Rule(Protocol):
    """Answers `labels` and `seen`. Holds no state."""

    name: str
    joins: bool
    """Whether an expert's texts are joined with its evidence, also where the task is named."""

    def plan(self, query: Query, view: View, features: torch.Tensor) -> Plan:
        """Which models see which images. `query` is checked; `features` are unit base features, float32 [B, D]."""
        ...

    def answer(self, plan: Plan, logits: Sequence[torch.Tensor]) -> list[Opinion]:
        """Combine the logits of a plan's jobs, float32 [images, classes] each, in their order: one opinion an image."""
        ...


RULES: dict[str, Rule] = {rule.name: rule for rule in (Mean(), Matched())}


def open_rule(name: str, view: View) -> Rule:
    """The rule of a name; `mean` in its place where a task of the version was learned without evidence.

    Raises `LabelSpaceError` for an unknown name.
    """
    if name not in RULES:
        raise LabelSpaceError(f"rule {name!r} does not exist: use {' or '.join(map(repr, RULES))}")
    return RULES[name] if name == Mean.name or view.router is not None else RULES[Mean.name]


def plan(query: Query, view: View, base_features: torch.Tensor | None, *, num_images: int) -> Plan:
    """Decide which models see which images.

    Args:
        query: checked against the view.
        base_features: unit base features, float32 [B, D]; None if `needs_base` is False. [1, D], `pooled`, where the
            query pools views: the plan is then for one image.
        num_images: B, before pooling.
    Raises:
        LabelSpaceError: labels that become the same tokens, which no model could tell apart.
    """
    warnings = _text_warnings(query, view)
    planned = _planned(query, view, base_features, 1 if query.pools else num_images)
    return replace(planned, warnings=warnings, num_views=num_images)


def _text_warnings(query: Query, view: View) -> tuple[str, ...]:
    """Texts of the question that the model cuts."""
    model_cfg = view.manifest.base.model_cfg
    if model_cfg is None or query.label_space == "seen":
        return ()
    task = view.tasks[query.task] if query.task is not None else None
    texts = (task.classes, task.templates) if task else (tuple(query.labels), tuple(query.templates))
    found = check_texts(model_cfg, *texts)
    if task is None and (problem := found.problem()):
        raise LabelSpaceError(problem)
    warning = found.warning()
    return (warning,) if warning else ()


def _planned(query: Query, view: View, base_features: torch.Tensor | None, num_images: int) -> Plan:
    if query.label_space != "task":
        assert base_features is not None
        return open_rule(query.rule, view).plan(query, view, base_features)
    assert query.task is not None
    task, everyone = view.tasks[query.task], tuple(range(num_images))
    if task.has_expert:
        job = Job(task.name, everyone, task.classes, task.templates, joined=open_rule(query.rule, view).joins)
        return Plan(query, ((task.name,),) * num_images, (job,), (None,) * num_images)
    assert base_features is not None
    head = head_logits(task, task.classes, base_features)
    return Plan(query, ((),) * num_images, (), (None,) * num_images, context=(task.classes, head))


def answer(plan: Plan, logits: Sequence[torch.Tensor]) -> list[Prediction]:
    """Combine the logits of a plan's jobs, in their order: a prediction per image, or one of all its views."""
    opinions, consulted = _opinions(plan, logits), plan.consulted
    if plan.query.views is None:
        return [ranked(opinion, plan, experts) for opinion, experts in zip(opinions, consulted, strict=True)]
    experts = tuple(dict.fromkeys(name for names in consulted for name in names))
    if plan.query.pools:
        return [ranked(opinions[0], plan, experts, forwards=plan.num_views * len(experts))]
    forwards = sum(map(len, consulted))
    return [ranked(together(opinions, plan.query.views), plan, experts, forwards=forwards)]


def _opinions(plan: Plan, logits: Sequence[torch.Tensor]) -> list[Opinion]:
    if plan.rule is not None:
        opinions: list[Opinion] = plan.rule.answer(plan, logits)
        return opinions
    classes, scores = plan.context or (plan.jobs[0].classes, logits[0])
    candidates = [(plan.query.task, name) for name in classes]
    return [Opinion(candidates, row) for row in scores.softmax(1)]
