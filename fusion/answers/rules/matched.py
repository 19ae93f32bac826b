"""Rule `matched`: experts speak only about labels that they were taught, and only as loudly as the image is theirs.

The base decides how much probability the known labels get together; the image decides which task it is from (the
router) and how far that task's expert outweighs the base (the gate). Where no label is known, the answer is the base's
own, and no expert runs. Derivation and figures: docs/method.md, "Rules".

Letters: B images, L labels, G groups (tasks with matched labels), T tasks, D dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from fusion.answers.label_matching import matched_classes
from fusion.answers.label_spaces import Job, Plan, Query
from fusion.answers.router import Router, gate
from fusion.answers.rules.heads import head_logits
from fusion.answers.rules.ranking import Opinion
from fusion.answers.view import View

ASKED_ABOVE = 0.05
"""A task's share of an image above which its expert is asked."""
_LISTED_ABOVE = 1e-3
"""In `seen`, a task's share of an image above which its classes are candidates."""
_LIKELY_TASKS = 5
"""Tasks whose p-values decide how familiar an image is: the likeliest ones. The others have no share to speak of."""


@dataclass(frozen=True)
class _Groups:
    """The tasks that may speak, G.

    Attributes:
        shares: r_t, float64 [B, G].
        asked: each one's classes that are in question, and its templates: an expert is asked in the words that it was
            taught, whatever the caller's are.
        temperatures: of each one's calibrated logits.
        labels: in `labels`, the indices of the labels that mean these classes, int64.
        heads: of the tasks that have no expert: calibrated logits of every image, float64 [B, C].
    """

    tasks: tuple[str, ...]
    shares: torch.Tensor
    asked: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]
    temperatures: tuple[float, ...]
    labels: tuple[torch.Tensor, ...] = ()
    heads: Mapping[str, torch.Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class _Context:
    """What is known of the images before any model has spoken.

    Attributes:
        gates, weights: g_t and w_t, float64 [B, G].
        familiarity: float64 [B].
    """

    groups: _Groups
    gates: torch.Tensor
    weights: torch.Tensor
    familiarity: torch.Tensor


_Spoken = dict[str, tuple[tuple[int, ...], torch.Tensor]]
"""What experts said: by task, the images and the calibrated logits, float64."""
_Answer = tuple[list[tuple[str | None, str]], torch.Tensor]
"""Candidates of an image, and their probabilities."""


class Matched:
    """Experts for what they were taught, the base for everything else."""

    name = "matched"
    joins = True

    def plan(self, query: Query, view: View, features: torch.Tensor) -> Plan:
        router = view.router
        assert router is not None, "a version without evidence is answered by another rule"
        likelihoods = router.log_likelihoods(features)
        matched = {name: matched_classes(query.labels, view.tasks[name].meanings) for name in router.tasks}
        if query.label_space == "seen":
            groups = _all_tasks(view, router, likelihoods, features)
        else:
            groups = _matched_tasks(view, router, likelihoods, features, matched)
        context = _context(router, features, likelihoods, groups)
        if query.label_space == "seen":
            jobs = [
                Job(None, _images(shares > 0), *asked)
                for shares, asked in zip(groups.shares.T, groups.asked, strict=True)
            ]
        else:
            jobs = [Job(None, tuple(range(len(features))), query.labels, query.templates)]
        for name, asked, weights in zip(groups.tasks, groups.asked, context.weights.T, strict=True):
            if (images := _images(weights > 0)) and name not in groups.heads:
                jobs.append(Job(name, images, *asked, joined=True))
        routed = tuple(router.tasks[i] for i in likelihoods.argmax(1).tolist())
        taught = {
            name: {query.labels[i]: class_name for i, class_name in found.items()}
            for name, found in matched.items()
            if found
        }
        return Plan(query, _consulted(context), tuple(jobs), routed, taught, self, context)

    def answer(self, plan: Plan, logits: Sequence[torch.Tensor]) -> list[Opinion]:
        steps = list(zip(plan.jobs, logits, strict=True))
        spoken = {job.task: (job.images, z.double()) for job, z in steps if job.task is not None}
        base = [(job, z) for job, z in steps if job.task is None]
        answers = _seen(plan.context, base, spoken) if plan.query.label_space == "seen" else _labels(plan, base, spoken)
        return [
            Opinion(candidates, row, familiar)
            for (candidates, row), familiar in zip(answers, plan.context.familiarity.tolist(), strict=True)
        ]


def _matched_tasks(
    view: View,
    router: Router,
    likelihoods: torch.Tensor,
    features: torch.Tensor,
    matched: Mapping[str, Mapping[int, str]],
) -> _Groups:
    """The tasks that were taught at least two of the labels; with one there is nothing to tell apart."""
    chosen = {name: found for name, found in matched.items() if len(found) > 1}
    columns = torch.tensor([router.tasks.index(name) for name in chosen], dtype=torch.int64)
    coverage = [len(set(found.values())) / len(view.tasks[name].classes) for name, found in chosen.items()]
    scaled = likelihoods[:, columns] / math.sqrt(router.dimensions) + torch.tensor(coverage).double().log()
    shares = scaled.softmax(1) if chosen else scaled
    asked = tuple((tuple(found.values()), view.tasks[name].templates) for name, found in chosen.items())
    labels = tuple(torch.tensor(list(found)) for found in chosen.values())
    heads = _heads(view, chosen, asked, features)
    return _Groups(tuple(chosen), shares, asked, _temperatures(view, chosen), labels, heads)


def _all_tasks(view: View, router: Router, likelihoods: torch.Tensor, features: torch.Tensor) -> _Groups:
    """The tasks that some image could be from."""
    shares = (likelihoods / math.sqrt(router.dimensions)).softmax(1)
    listed = shares > _LISTED_ABOVE
    kept = listed.any(0).nonzero()[:, 0].tolist()
    shares = torch.where(listed, shares, torch.zeros_like(shares))[:, kept]
    tasks = tuple(router.tasks[i] for i in kept)
    asked = tuple((view.tasks[name].classes, view.tasks[name].templates) for name in tasks)
    heads = _heads(view, tasks, asked, features)
    return _Groups(tasks, shares / shares.sum(1, keepdim=True), asked, _temperatures(view, tasks), heads=heads)


def _temperatures(view: View, tasks: Iterable[str]) -> tuple[float, ...]:
    return tuple(view.tasks[name].temperature for name in tasks)


def _heads(
    view: View,
    tasks: Iterable[str],
    asked: Sequence[tuple[tuple[str, ...], tuple[str, ...]]],
    features: torch.Tensor,
) -> dict[str, torch.Tensor]:
    return {
        name: head_logits(view.tasks[name], classes, features)
        for name, (classes, _) in zip(tasks, asked, strict=True)
        if not view.tasks[name].has_expert
    }


def _context(router: Router, features: torch.Tensor, likelihoods: torch.Tensor, groups: _Groups) -> _Context:
    """Gates and familiarity, from p-values that are computed once; the likeliest group's expert weighs (1 + g) / 2.

    Familiarity is the p-value for the task that the image is from, averaged over which task that may be.
    """
    columns = [router.tasks.index(name) for name in groups.tasks]
    likely = torch.zeros_like(likelihoods, dtype=torch.bool)
    likely.scatter_(1, likelihoods.topk(min(_LIKELY_TASKS, len(router.tasks))).indices, True)
    needed = likely.clone()
    needed[:, columns] |= groups.shares > 0
    p_values = torch.zeros_like(likelihoods)
    for column in needed.any(0).nonzero()[:, 0].tolist():
        images = needed[:, column]
        p_values[images, column] = router.p_values(features[images], router.tasks[column])
    gates = torch.where(groups.shares > 0, gate(p_values[:, columns]), 0.0)
    weights = torch.zeros_like(groups.shares)
    if groups.tasks:
        best = groups.shares.argmax(1, keepdim=True)
        asked = groups.shares.gather(1, best) > ASKED_ABOVE
        weights.scatter_(1, best, torch.where(asked, (1 + gates.gather(1, best)) / 2, 0.0))
    from_task = torch.where(likely, likelihoods, -torch.inf).div(math.sqrt(router.dimensions)).softmax(1)
    return _Context(groups, gates, weights, (from_task * p_values).sum(1))


def _consulted(context: _Context) -> tuple[tuple[str, ...], ...]:
    found: list[tuple[str, ...]] = [()] * len(context.weights)
    for image, group in context.weights.nonzero().tolist():
        if (name := context.groups.tasks[group]) not in context.groups.heads:
            found[image] = (name,)
    return tuple(found)


def _images(chosen: torch.Tensor) -> tuple[int, ...]:
    return tuple(chosen.nonzero()[:, 0].tolist())


def _mixed(base: torch.Tensor, images: Sequence[int], context: _Context, group: int, spoken: _Spoken) -> torch.Tensor:
    """q_t, float64: softmax of the base's logits of these images, mixed with the task's own where it has a say."""
    task, everyone = context.groups.tasks[group], list(images)
    mixed, weights = base.clone(), context.weights[:, group, None]
    warmth = context.groups.temperatures[group]
    if (head := context.groups.heads.get(task)) is not None:
        mixed = _beside(mixed, weights[everyone], head[everyone], warmth)
    elif task in spoken:
        seen_by, z = spoken[task]
        place = {image: row for row, image in enumerate(images)}
        rows = [place[image] for image in seen_by]
        mixed[rows] = _beside(mixed[rows], weights[list(seen_by)], z, warmth)
    return mixed.softmax(1)


def _beside(base: torch.Tensor, weight: torch.Tensor, own: torch.Tensor, temperature: float) -> torch.Tensor:
    """Two opinions mixed as they were before one of them was calibrated, then made as sure as it is."""
    return ((1 - weight) * base + weight * temperature * own) / (1 - weight + weight * temperature)


def _labels(plan: Plan, base: Sequence[tuple[Job, torch.Tensor]], spoken: _Spoken) -> list[_Answer]:
    context: _Context = plan.context
    ((_, z0),) = base
    candidates: list[tuple[str | None, str]] = [(None, label) for label in plan.query.labels]
    probabilities = _joined(z0.double(), context, spoken) if context.groups.tasks else z0.softmax(1)
    return [(candidates, row) for row in probabilities]


def _seen(context: _Context, base: Sequence[tuple[Job, torch.Tensor]], spoken: _Spoken) -> list[_Answer]:
    candidates: list[list[tuple[str | None, str]]] = [[] for _ in context.weights]
    parts: list[list[torch.Tensor]] = [[] for _ in context.weights]
    for group, (job, z0) in enumerate(base):
        rows = _mixed(z0.double(), job.images, context, group, spoken)
        for image, row in zip(job.images, rows, strict=True):
            candidates[image] += [(context.groups.tasks[group], name) for name in job.classes]
            parts[image].append(context.groups.shares[image, group] * row)
    return [(names, torch.cat(rows)) for names, rows in zip(candidates, parts, strict=True)]


def _joined(base: torch.Tensor, context: _Context, spoken: _Spoken) -> torch.Tensor:
    """p(y), float64 [B, L]: the base's outside of what was matched, shared among the groups' answers inside."""
    shares, groups = context.groups.shares, context.groups.labels
    p0 = base.softmax(1)
    known = torch.zeros(base.shape[1], dtype=torch.bool)
    for labels in groups:
        known[labels] = True
    from_base = torch.stack([p0[:, labels].sum(1) for labels in groups], dim=1)  # b_t before normalising
    total = from_base.sum(1, keepdim=True)
    from_base = torch.where(total > 0, from_base / total.clamp(min=1e-300), shares)
    trust = (shares * context.gates).sum(1, keepdim=True)  # G
    mixture = trust * shares + (1 - trust) * from_base  # sigma_t
    inside = torch.zeros_like(p0)
    for group, labels in enumerate(groups):
        own = _mixed(base[:, labels], range(len(base)), context, group, spoken)
        inside[:, labels] += mixture[:, group, None] * own
    mass = p0[:, known].sum(1, keepdim=True)
    return torch.where(known, mass * inside, p0)
