"""The router: whose image is it, and how usual would it be there. Derived from the evidence of a version's tasks.

Letters: B images, C classes of all tasks together, D dimensions, T tasks. Source: docs/method.md, "Rules".
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from fusion.answers.class_sums import squared_distances, whitener
from fusion.answers.evidence import Evidence, pooled_covariance

FALSE_ALARM = 0.05
"""A conformal p-value below this counts as unusual: alpha."""


class Router:
    """Task likelihoods and conformal p-values of a set of tasks. Safe to share between threads.

    Args:
        evidence: by task, all of one embedding space; at least one.

    Memory: a whitened copy of the class means; the evidence keeps one more, and a D x D matrix, for every task whose
    p-values were asked for.
    """

    def __init__(self, evidence: Mapping[str, Evidence]) -> None:
        self.tasks = tuple(evidence)
        self._evidence = dict(evidence)
        self.dimensions = next(iter(evidence.values())).base.means.shape[1]
        self._white = whitener(pooled_covariance(evidence))
        kept = {task: one.base.means[one.base.counts > 0].double() for task, one in evidence.items()}
        self._means_CD = torch.cat(list(kept.values())) @ self._white
        sizes = torch.tensor([len(means) for means in kept.values()])
        self._owner_C = torch.repeat_interleave(torch.arange(len(sizes)), sizes)
        self._sizes_T = sizes

    def log_likelihoods(self, features: torch.Tensor) -> torch.Tensor:
        """l_t = log mean_c exp(-1/2 (f - mu_c) W^-1 (f - mu_c)), float64 [B, T], of unit base features [B, D].

        One matrix product per batch. W is the tasks' shared covariance. A task without images gets -infinity.
        """
        halves = -0.5 * squared_distances(features.double() @ self._white, self._means_CD)
        num_images, num_tasks = len(features), len(self.tasks)
        owner = self._owner_C.expand(num_images, -1)
        best = torch.full((num_images, num_tasks), -torch.inf, dtype=torch.float64)
        best = best.scatter_reduce(1, owner, halves, "amax")
        shifted = (halves - best.gather(1, owner)).exp()
        sums = torch.zeros_like(best).scatter_add(1, owner, shifted)
        return best + sums.log() - self._sizes_T.clamp(min=1).double().log()

    def evidence(self, task: str) -> Evidence:
        """A task's own."""
        return self._evidence[task]

    def p_values(self, features: torch.Tensor, task: str) -> torch.Tensor:
        """Share of the task's held-out distances that are at least the image's own, float64 [B].

        How unusual the image would be for the task: 5 % of its own images are below 0.05. 0 without held-out distances.
        """
        held_out = self._evidence[task].held_out
        if not len(held_out):
            return torch.zeros(len(features), dtype=torch.float64)
        nearest = self._evidence[task].discriminant.distances(features).amin(1)
        below = torch.searchsorted(held_out.double(), nearest, right=False)
        return 1 - below.double() / len(held_out)


def gate(p_values: torch.Tensor) -> torch.Tensor:
    """g = min(1, p / alpha)."""
    return (p_values / FALSE_ALARM).clamp(max=1.0)
