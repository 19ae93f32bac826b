"""Rule `matched`: experts speak only about labels that they were taught, and only as loudly as the image is theirs.

The base decides how much probability the known labels get together; the image decides which task it is from (the
router) and how far that task's expert outweighs the base (the gate). Where no label is known, the answer is the base's
own, and no expert runs. Derivation and figures: docs/method.md, "Rules".

Letters: B images, L labels, G groups (tasks with matched labels), T tasks, D dimensions.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from fusion.answers.label_spaces import Job, Plan, Prediction, Query
from fusion.answers.router import Router
from fusion.answers.rules.ranking import ranked
from fusion.answers.view import TaskView, View

ASKED_ABOVE = 0.05
"""A task's share of an image above which its expert is asked."""
_LISTED_ABOVE = 1e-3
"""In `seen`, a task's share of an image above which its classes are candidates."""
_LIKELY_TASKS = 5
"""Tasks whose p-values decide how familiar an image is: the likeliest ones."""


@dataclass(frozen=True)
class _Context:
    """What is known of the images before any model has spoken.

    Attributes:
        tasks: the groups, G.
        labels: for each group the indices of its labels, int64.
        shares, gates, weights: r_t, g_t and w_t, float64 [B, G].
        familiarity: float64 [B].
    """

    tasks: tuple[str, ...]
    labels: tuple[torch.Tensor, ...]
    shares: torch.Tensor
    gates: torch.Tensor
    weights: torch.Tensor
    familiarity: torch.Tensor


class Matched:
    """Experts for what they were taught, the base for everything else."""

    name = "matched"

    def plan(self, query: Query, view: View, features: torch.Tensor) -> Plan:
        router = view.router
        assert router is not None, "a version without evidence is answered by another rule"
        likelihoods = router.log_likelihoods(features)
        familiarity = _familiarity(router, features, likelihoods)
        routed = tuple(router.tasks[i] for i in likelihoods.argmax(1).tolist())
        if query.label_space == "seen":
            return self._plan_seen(query, view, features, likelihoods, familiarity, routed)
        return self._plan_labels(query, view, features, likelihoods, familiarity, routed)

    def answer(self, plan: Plan, logits: Sequence[torch.Tensor]) -> list[Prediction]:
        combine = self._answer_seen if plan.query.label_space == "seen" else self._answer_labels
        return combine(plan, logits)

    def _plan_labels(
        self, query: Query, view: View, features: torch.Tensor, likelihoods: torch.Tensor, familiarity: torch.Tensor,
        routed: tuple[str, ...],
    ) -> Plan:  # fmt: skip
        router = view.router
        assert router is not None
        everyone = tuple(range(len(features)))
        matched = {name: found for name in router.tasks if len(found := matches(query.labels, view.tasks[name])) > 1}
        base = Job(None, everyone, query.labels, query.templates)
        groups = tuple(matched)
        columns = torch.tensor([router.tasks.index(name) for name in groups], dtype=torch.int64)
        coverage = torch.tensor([len(matched[name]) / len(view.tasks[name].classes) for name in groups])
        scaled = likelihoods[:, columns] / math.sqrt(router.dimensions) + coverage.double().log()
        shares = scaled.softmax(1) if groups else scaled
        context = _context(router, features, groups, shares, familiarity, tuple(map(torch.tensor, matched.values())))
        jobs = [base]
        for group, name in enumerate(groups):
            if images := _images(context.weights[:, group] > 0):
                labels = tuple(query.labels[i] for i in matched[name])
                jobs.append(Job(name, images, labels, query.templates))
        return Plan(query, _consulted(context, len(everyone)), tuple(jobs), routed, self, context)

    def _answer_labels(self, plan: Plan, logits: Sequence[torch.Tensor]) -> list[Prediction]:
        context: _Context = plan.context
        candidates = [(None, label) for label in plan.query.labels]
        base, *experts = logits
        probabilities = base.softmax(1)
        if context.tasks:
            spoken = {job.task: (job.images, z) for job, z in zip(plan.jobs[1:], experts, strict=True)}
            probabilities = _joined(base.double(), context, spoken)
        return [
            ranked(candidates, row, experts, rule=self.name, familiarity=familiar)
            for row, experts, familiar in zip(probabilities, plan.consulted, context.familiarity.tolist(), strict=True)
        ]

    def _plan_seen(
        self, query: Query, view: View, features: torch.Tensor, likelihoods: torch.Tensor, familiarity: torch.Tensor,
        routed: tuple[str, ...],
    ) -> Plan:  # fmt: skip
        router = view.router
        assert router is not None
        shares = (likelihoods / math.sqrt(router.dimensions)).softmax(1)
        listed = shares > _LISTED_ABOVE
        kept = [i for i in range(len(router.tasks)) if bool(listed[:, i].any())]
        groups = tuple(router.tasks[i] for i in kept)
        shares = torch.where(listed, shares, torch.zeros_like(shares))[:, kept]
        context = _context(router, features, groups, shares / shares.sum(1, keepdim=True), familiarity, ())
        jobs: list[Job] = []
        for group, name in enumerate(groups):
            task = view.tasks[name]
            jobs.append(Job(None, _images(context.shares[:, group] > 0), task.classes, task.templates))
            if images := _images(context.weights[:, group] > 0):
                jobs.append(Job(name, images, task.classes, task.templates))
        return Plan(query, _consulted(context, len(features)), tuple(jobs), routed, self, context)

    def _answer_seen(self, plan: Plan, logits: Sequence[torch.Tensor]) -> list[Prediction]:
        context: _Context = plan.context
        candidates: list[list[tuple[str | None, str]]] = [[] for _ in plan.consulted]
        rows: list[list[torch.Tensor]] = [[] for _ in plan.consulted]
        group = -1
        steps = list(zip(plan.jobs, logits, strict=True))
        for position, (job, z0) in enumerate(steps):
            if job.task is not None:
                continue
            group += 1
            follows = steps[position + 1] if position + 1 < len(steps) else None
            own = follows[1] if follows and follows[0].task is not None else None
            expert = dict(zip(follows[0].images, own, strict=True)) if follows and own is not None else {}
            for image, base_row in zip(job.images, z0.double(), strict=True):
                weight = float(context.weights[image, group])
                mixed = base_row if image not in expert else (1 - weight) * base_row + weight * expert[image].double()
                candidates[image] += [(context.tasks[group], name) for name in job.classes]
                rows[image].append(context.shares[image, group] * mixed.softmax(0))
        return [
            ranked(names, torch.cat(parts), experts, rule=self.name, familiarity=familiar)
            for names, parts, experts, familiar in zip(
                candidates, rows, plan.consulted, context.familiarity.tolist(), strict=True
            )
        ]


def matches(labels: Sequence[str], task: TaskView) -> list[int]:
    """Indices of the labels that are classes of a task, by their text: stripped, case-folded, Unicode-normalised."""
    taught = {_folded(name) for name in task.classes}
    return [i for i, label in enumerate(labels) if _folded(label) in taught]


def _folded(text: str) -> str:
    return unicodedata.normalize("NFKC", text.strip()).casefold()


def _familiarity(router: Router, features: torch.Tensor, likelihoods: torch.Tensor) -> torch.Tensor:
    """The best p-value over each image's likeliest tasks, float64 [B]."""
    likely = likelihoods.topk(min(_LIKELY_TASKS, len(router.tasks))).indices
    best = torch.zeros(len(features), dtype=torch.float64)
    for column in likely.unique().tolist():
        images = (likely == column).any(1)
        best[images] = torch.maximum(best[images], router.p_values(features[images], router.tasks[column]))
    return best


def _context(
    router: Router,
    features: torch.Tensor,
    groups: tuple[str, ...],
    shares: torch.Tensor,
    familiarity: torch.Tensor,
    labels: tuple[torch.Tensor, ...],
) -> _Context:
    """Gates of every group, and the weight of the likeliest one's expert: (1 + g) / 2."""
    gates = torch.zeros_like(shares)
    for column, task in enumerate(groups):
        images = shares[:, column] > 0
        gates[images, column] = router.gates(features[images], task)
    weights = torch.zeros_like(shares)
    if groups:
        best = shares.argmax(1, keepdim=True)
        asked = shares.gather(1, best) > ASKED_ABOVE
        weights.scatter_(1, best, torch.where(asked, (1 + gates.gather(1, best)) / 2, 0.0))
    return _Context(groups, labels, shares, gates, weights, familiarity)


def _consulted(context: _Context, num_images: int) -> tuple[tuple[str, ...], ...]:
    found: list[tuple[str, ...]] = [()] * num_images
    for image, group in context.weights.nonzero().tolist():
        found[image] = (context.tasks[group],)
    return tuple(found)


def _images(chosen: torch.Tensor) -> tuple[int, ...]:
    return tuple(chosen.nonzero()[:, 0].tolist())


def _joined(
    base: torch.Tensor, context: _Context, spoken: dict[str | None, tuple[tuple[int, ...], torch.Tensor]]
) -> torch.Tensor:
    """p(y), float64 [B, L]: the base's outside of what was matched, shared among the groups' answers inside."""
    p0 = base.softmax(1)
    known = torch.zeros(base.shape[1], dtype=torch.bool)
    for labels in context.labels:
        known[labels] = True
    from_base = torch.stack([p0[:, labels].sum(1) for labels in context.labels], dim=1)  # b_t before normalising
    total = from_base.sum(1, keepdim=True)
    from_base = torch.where(total > 0, from_base / total.clamp(min=1e-300), context.shares)
    trust = (context.shares * context.gates).sum(1, keepdim=True)  # G
    mixture = trust * context.shares + (1 - trust) * from_base  # sigma_t
    inside = torch.zeros_like(p0)
    for group, (task, labels) in enumerate(zip(context.tasks, context.labels, strict=True)):
        mixed = base[:, labels].clone()
        if task in spoken:
            images, z = spoken[task]
            rows = torch.tensor(images)
            weight = context.weights[rows, group, None]
            mixed[rows] = (1 - weight) * mixed[rows] + weight * z.double()
        inside[:, labels] += mixture[:, group, None] * mixed.softmax(1)
    mass = p0[:, known].sum(1, keepdim=True)
    return torch.where(known, mass * inside, p0)
