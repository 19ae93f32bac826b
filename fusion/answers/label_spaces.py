"""The three label spaces: what a request means, and the records between question and answer.

- `task`: the caller names the task; its expert alone answers, over its own classes.
- `labels`: the caller gives class names; the base and experts answer over them.
- `seen`: the caller gives nothing; the classes of all tasks compete.

Which experts answer in `labels` and `seen`, and how their logits are combined, is a rule's to say (`answers.rules`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fusion.answers.options import PredictOptions
from fusion.answers.prompts import DEFAULT_TEMPLATES, check_templates
from fusion.errors import LabelSpaceError

if TYPE_CHECKING:  # a client of the service reads these records without torch
    from fusion.answers.view import View

LABEL_SPACES = ("task", "labels", "seen")
VIEWS = ("mean", "max", "mean-feature")
"""How views of one object are combined: the mean of their log-probabilities, the largest probability, or one answer
for the mean of their features."""


@dataclass(frozen=True)
class Query:
    """What is asked about some images.

    Attributes:
        label_space: `task`, `labels` or `seen`.
        task: with `task` only.
        labels, templates: with `labels` only; templates hold one `{}` each.
        top_k: how many experts the rule `mean` consults per image, at least 1.
        rule: how experts and base are combined, a name in `answers.rules`.
        abstain: with `seen` only: answer "unknown" for images that are more unusual than this share of the learned
            tasks' own images, above 0 and below 1; None: never.
        views: all images are views of one object, which gets one answer, combined as `VIEWS` says; None: each image is
            answered for itself.
    """

    label_space: str
    task: str | None = None
    labels: tuple[str, ...] = ()
    templates: tuple[str, ...] = DEFAULT_TEMPLATES
    top_k: int = PredictOptions.top_k
    rule: str = PredictOptions.rule
    abstain: float | None = None
    views: str | None = None

    @property
    def pools(self) -> bool:
        """Whether views are combined as features."""
        return self.views == "mean-feature"

    def check(self, view: View) -> None:
        """Raises `LabelSpaceError` or `UnknownTaskError` that says what is wrong and what would be valid."""
        if self.label_space not in LABEL_SPACES:
            raise LabelSpaceError(
                f"label space {self.label_space!r} does not exist: use 'task' (and name it), "
                "'labels' (and give them) or 'seen'"
            )
        if self.top_k < 1:
            raise LabelSpaceError(f"top_k is {self.top_k}: it must be at least 1")
        if self.views is not None and self.views not in VIEWS:
            raise LabelSpaceError(f"views can't be combined by {self.views!r}: use {', '.join(map(repr, VIEWS))}")
        self._check_abstain()
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

    def _check_abstain(self) -> None:
        if self.abstain is None:
            return
        if not 0 < self.abstain < 1:
            raise LabelSpaceError(
                f"abstain is {self.abstain:g}: it is the share of familiar images that may be answered with 'unknown', "
                "above 0 and below 1, such as 0.05"
            )
        if self.label_space != "seen":
            raise LabelSpaceError(
                f"label space {self.label_space!r} never answers 'unknown': drop abstain, or use 'seen'"
            )

    def _check_task(self, view: View) -> None:
        if not self.task:
            raise LabelSpaceError("label space 'task' needs the name of a task")
        if self.task not in view.tasks:
            from fusion.versions.manifest import unknown_task

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
        if not self.templates:
            raise LabelSpaceError("label space 'labels' needs at least one template, such as 'a photo of a {}.'")
        check_templates(self.templates)


@dataclass(frozen=True)
class Job:
    """One model on some of the images; `task` None is the base. Yields logits, float32 [len(images), len(classes)].

    Attributes:
        joined: of an expert: whether its discriminant joins the texts, and the logits are calibrated. Then `classes`
            are the task's own.
    """

    task: str | None
    images: tuple[int, ...]
    classes: tuple[str, ...]
    templates: tuple[str, ...]
    joined: bool = False


@dataclass(frozen=True)
class Plan:
    """What has to run to answer a query.

    Attributes:
        consulted: for each image the experts that see it, nearest first.
        routed: for each image the task that it most likely belongs to; None where there is none, or it was named.
        matched: with `labels`, by task: the labels that it was taught, and the class that each of them means there.
        rule: the rule that made the plan and combines its logits; None in label space `task`.
        context: what the rule knows of the images beside the logits to come.
        warnings: what may be wrong with the question, a sentence each.
        num_views: images that were given.
    """

    query: Query
    consulted: tuple[tuple[str, ...], ...]
    jobs: tuple[Job, ...]
    routed: tuple[str | None, ...] = ()
    matched: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    rule: Any = None
    context: Any = None
    warnings: tuple[str, ...] = ()
    num_views: int = 0


@dataclass(frozen=True)
class Prediction:
    """The answer for one image.

    Attributes:
        label: the class; None where the answer is "unknown".
        task: the task that the class belongs to; None in label space `labels`, and where the answer is "unknown".
        probability: of the best candidate, among the candidates.
        experts: those consulted, nearest first.
        forwards: of experts.
        top: up to five (task or None, label, probability), best first, also where the answer is "unknown".
        rule: the rule that combined the models; None in label space `task`.
        familiarity: how usual the image is for what was learned: its conformal p-value for the task that it is from,
            averaged over which task that may be, in [0, 1]; None where the rule has no evidence to tell it from.
        unknown: whether the image is too unusual to be answered; None where nobody asked, or nothing tells.
        matched: with `labels`, by task: the labels that it was taught, and the class that each of them means there.
        warnings: what may be wrong with the question, such as a text that the model cuts; a sentence each.
    """

    label: str | None
    task: str | None
    probability: float
    experts: tuple[str, ...]
    forwards: int
    top: tuple[tuple[str | None, str, float], ...]
    rule: str | None = None
    familiarity: float | None = None
    unknown: bool | None = None
    matched: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def needs_base(query: Query, view: View) -> bool:
    """Whether the base has to see the images: always, unless a task with an expert is named."""
    return query.label_space != "task" or (query.task is not None and not view.tasks[query.task].has_expert)
