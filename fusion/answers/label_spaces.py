"""The three label spaces: what a request means, which experts it needs, and how their logits become an answer.

Three steps, so that the same rules work in a plain loop and on a cluster: `plan` decides which expert sees which image
over which classes, the caller runs these jobs, `answer` combines their logits. Free of models, stores and Ray.

- `task`: the caller names the task; its expert alone answers, over its own classes.
- `labels`: the caller gives class names; the answer is the mean of the logits of the base and of the top-K routed
  experts over them (the paper's zero-shot rule).
- `seen`: the caller gives nothing; candidates are the classes of the top-K routed tasks, a class scores the mean of the
  base's logit and its own expert's logit.

Letters: B images, C classes, D dimensions, T tasks. Source: ConDU (arXiv 2503.10705), inference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from fusion.answers.options import PredictOptions
from fusion.answers.prompts import DEFAULT_TEMPLATES
from fusion.answers.prototypes import route_scores, top_tasks
from fusion.answers.view import View
from fusion.errors import LabelSpaceError
from fusion.versions.manifest import unknown_task

LABEL_SPACES = ("task", "labels", "seen")


@dataclass(frozen=True)
class Query:
    """What is asked about some images.

    Attributes:
        label_space: `task`, `labels` or `seen`.
        task: with `task` only.
        labels, templates: with `labels` only; templates hold one `{}` each.
        top_k: how many experts are consulted per image, at least 1.
    """

    label_space: str
    task: str | None = None
    labels: tuple[str, ...] = ()
    templates: tuple[str, ...] = DEFAULT_TEMPLATES
    top_k: int = PredictOptions.top_k

    def check(self, view: View) -> None:
        """Raises `LabelSpaceError` or `UnknownTaskError` that says what is wrong and what would be valid."""
        if self.label_space not in LABEL_SPACES:
            raise LabelSpaceError(
                f"label space {self.label_space!r} does not exist: use 'task' (and name it), "
                "'labels' (and give them) or 'seen'"
            )
        if self.top_k < 1:
            raise LabelSpaceError(f"top_k is {self.top_k}: it must be at least 1")
        if self.label_space == "task":
            self._check_task(view)
        elif self.task is not None:
            raise LabelSpaceError(
                f"label space {self.label_space!r} takes no task: drop task={self.task!r}, or use 'task'"
            )
        if self.label_space == "labels":
            self._check_labels()
        elif self.labels:
            raise LabelSpaceError(f"label space {self.label_space!r} takes no labels: drop them, or use 'labels'")
        if self.label_space == "seen" and not view.routable():
            raise LabelSpaceError(f"version {view.version} has no task with classes yet: give labels instead")

    def _check_task(self, view: View) -> None:
        if not self.task:
            raise LabelSpaceError("label space 'task' needs the name of a task")
        if self.task not in view.tasks:
            raise unknown_task(self.task, view.version, view.tasks)
        if not view.tasks[self.task].classes:
            raise LabelSpaceError(
                f"task {self.task!r} was fused from plain weights and has no classes: use label space 'labels'"
            )

    def _check_labels(self) -> None:
        if not self.labels:
            raise LabelSpaceError("label space 'labels' needs at least one label")
        if any(not label.strip() for label in self.labels):
            raise LabelSpaceError("a label is empty: every label needs a name")
        if len(set(self.labels)) < len(self.labels):
            doubled = sorted({label for label in self.labels if self.labels.count(label) > 1})
            raise LabelSpaceError(f"label {doubled[0]!r} is given twice")
        if not self.templates or any(template.count("{}") != 1 for template in self.templates):
            raise LabelSpaceError(f"templates {list(self.templates)}: each needs one '{{}}', where the class name goes")


@dataclass(frozen=True)
class Job:
    """One model on some of the images; `task` None is the base. Yields logits, float32 [len(images), len(classes)]."""

    task: str | None
    images: tuple[int, ...]
    classes: tuple[str, ...]
    templates: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """What has to run to answer a query. `consulted[i]` are the experts for image i, nearest first."""

    query: Query
    consulted: tuple[tuple[str, ...], ...]
    jobs: tuple[Job, ...]


@dataclass(frozen=True)
class Prediction:
    """The answer for one image.

    Attributes:
        label: the class.
        task: the task that the class belongs to; None in label space `labels`.
        probability: softmax over the candidates.
        experts: those consulted, nearest first.
        top: up to five (task or None, label, probability), best first.
    """

    label: str
    task: str | None
    probability: float
    experts: tuple[str, ...]
    top: tuple[tuple[str | None, str, float], ...]


def needs_base(query: Query) -> bool:
    """Whether the base has to see the images: always, unless the task is named."""
    return query.label_space != "task"


def plan(query: Query, view: View, base_features: torch.Tensor | None, *, num_images: int) -> Plan:
    """Decide which experts see which images.

    Args:
        query: checked against the view.
        base_features: unit base features, float32 [B, D]; None if `needs_base` is False.
        num_images: B.
    """
    everyone = tuple(range(num_images))
    if query.label_space == "task":
        assert query.task is not None
        task = view.tasks[query.task]
        job = Job(task.name, everyone, task.classes, task.templates)
        return Plan(query, ((task.name,),) * num_images, (job,))
    assert base_features is not None
    prototypes = view.routable()
    names = list(prototypes)
    best = top_tasks(route_scores(base_features, prototypes), query.top_k).tolist()
    consulted = tuple(tuple(names[i] for i in row) for row in best)
    jobs = []
    if query.label_space == "labels":
        jobs.append(Job(None, everyone, query.labels, query.templates))
    for name in names:
        images = tuple(i for i in everyone if name in consulted[i])
        if not images:
            continue
        if query.label_space == "labels":
            jobs.append(Job(name, images, query.labels, query.templates))
        else:
            task = view.tasks[name]
            jobs += [Job(model, images, task.classes, task.templates) for model in (None, name)]
    return Plan(query, consulted, tuple(jobs))


def answer(plan: Plan, logits: Sequence[torch.Tensor]) -> list[Prediction]:
    """Combine the logits of a plan's jobs, in their order, by the rule of its label space."""
    if plan.query.label_space == "seen":
        return _answer_seen(plan, logits)
    scores, classes = candidate_scores(plan, logits)
    task = plan.query.task
    return [
        _prediction([(task, name) for name in classes], row, experts)
        for row, experts in zip(scores, plan.consulted, strict=True)
    ]


def candidate_scores(plan: Plan, logits: Sequence[torch.Tensor]) -> tuple[torch.Tensor, tuple[str, ...]]:
    """Scores float32 [B, C] over the query's classes, in `task` and `labels`: the mean over the models consulted."""
    classes = plan.jobs[0].classes
    sums = torch.zeros(len(plan.consulted), len(classes))
    counts = torch.zeros(len(plan.consulted), 1)
    for job, values in zip(plan.jobs, logits, strict=True):
        images = torch.tensor(job.images)
        sums.index_add_(0, images, values)
        counts.index_add_(0, images, torch.ones(len(job.images), 1))
    return sums / counts, classes


def _answer_seen(plan: Plan, logits: Sequence[torch.Tensor]) -> list[Prediction]:
    # jobs come in pairs (base, expert) over one task's classes
    candidates: list[list[tuple[str | None, str]]] = [[] for _ in plan.consulted]
    scores: list[list[torch.Tensor]] = [[] for _ in plan.consulted]
    for k in range(0, len(plan.jobs), 2):
        job = plan.jobs[k + 1]
        for image, row in zip(job.images, (logits[k] + logits[k + 1]) / 2, strict=True):
            candidates[image] += [(job.task, name) for name in job.classes]
            scores[image].append(row)
    return [
        _prediction(names, torch.cat(rows), experts)
        for names, rows, experts in zip(candidates, scores, plan.consulted, strict=True)
    ]


def _prediction(
    candidates: Sequence[tuple[str | None, str]], scores: torch.Tensor, experts: tuple[str, ...]
) -> Prediction:
    probabilities = scores.softmax(0)
    best = probabilities.topk(min(5, len(candidates)))
    top = tuple((*candidates[i], p) for p, i in zip(best.values.tolist(), best.indices.tolist(), strict=True))
    task, label, probability = top[0]
    return Prediction(label, task, probability, experts, top)
