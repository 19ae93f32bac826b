"""Rule `mean`, the paper's: the mean of the logits of the base and of the experts whose prototypes are nearest.

- `labels`: over the base and the top-K routed experts.
- `seen`: candidates are the classes of the top-K routed tasks; a class scores the mean of the base's logit and its own
  expert's logit.

Source: ConDU (arXiv 2503.10705), inference.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fusion.answers.label_spaces import Job, Plan, Query
from fusion.answers.prototypes import route_scores, top_tasks
from fusion.answers.rules.ranking import Opinion
from fusion.answers.view import View


class Mean:
    """Base and experts as equals."""

    name = "mean"
    joins = False

    def plan(self, query: Query, view: View, features: torch.Tensor) -> Plan:
        everyone = tuple(range(len(features)))
        prototypes = view.routable()
        names = list(prototypes)
        best = top_tasks(route_scores(features, prototypes), query.top_k).tolist()
        nearest = tuple(tuple(names[i] for i in row) for row in best)
        consulted = tuple(tuple(name for name in row if view.tasks[name].has_expert) for row in nearest)
        jobs = []
        if query.label_space == "labels":
            jobs.append(Job(None, everyone, query.labels, query.templates))
        for name in names:
            task = view.tasks[name]
            images = tuple(i for i in everyone if name in nearest[i])
            if not images:
                continue
            if query.label_space == "seen":
                pair = (None, name if task.has_expert else None)
                jobs += [Job(model, images, task.classes, task.templates) for model in pair]
            elif task.has_expert:
                jobs.append(Job(name, images, query.labels, query.templates))
        routed = tuple(row[0] if row else None for row in nearest)
        owners = tuple(name for name in names if any(name in row for row in nearest))
        return Plan(query, consulted, tuple(jobs), routed, rule=self, context=owners)

    def answer(self, plan: Plan, logits: Sequence[torch.Tensor]) -> list[Opinion]:
        if plan.query.label_space == "seen":
            return self._seen(plan, logits)
        scores, classes = mean_scores(plan, logits)
        candidates: list[tuple[str | None, str]] = [(None, name) for name in classes]
        return [Opinion(candidates, row) for row in scores.softmax(1)]

    def _seen(self, plan: Plan, logits: Sequence[torch.Tensor]) -> list[Opinion]:
        # jobs come in pairs (base, expert) over one task's classes; without an expert the base stands for it
        candidates: list[list[tuple[str | None, str]]] = [[] for _ in plan.consulted]
        scores: list[list[torch.Tensor]] = [[] for _ in plan.consulted]
        for k, owner in enumerate(plan.context):
            job = plan.jobs[2 * k]
            for image, row in zip(job.images, (logits[2 * k] + logits[2 * k + 1]) / 2, strict=True):
                candidates[image] += [(owner, name) for name in job.classes]
                scores[image].append(row)
        return [Opinion(names, torch.cat(rows).softmax(0)) for names, rows in zip(candidates, scores, strict=True)]


def mean_scores(plan: Plan, logits: Sequence[torch.Tensor]) -> tuple[torch.Tensor, tuple[str, ...]]:
    """Scores float32 [B, C] over the query's labels: the mean over the models consulted."""
    classes = plan.jobs[0].classes
    sums = torch.zeros(len(plan.consulted), len(classes))
    counts = torch.zeros(len(plan.consulted), 1)
    for job, values in zip(plan.jobs, logits, strict=True):
        images = torch.tensor(job.images)
        sums.index_add_(0, images, values)
        counts.index_add_(0, images, torch.ones(len(job.images), 1))
    return sums / counts, classes
