"""Evidence of a task: what its training images look like to the base, in a few sums. It tells whose an image is.

Everything here is computed from one task's own images when it is trained; no old data is needed later. The sums combine
over workers and over images that are added later.

Letters: N images, C classes, D dimensions of the embedding, H held-out distances. Source: docs/method.md, "Rules".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from fusion.tensors import TensorFile

NUM_FOLDS = 5
MAX_HELD_OUT = 1000
SHRINKAGE = 0.1
"""Share of a covariance that is spread evenly over all directions, so that few images still give an invertible one."""

_WIDE = 512
"""Above this many dimensions the scatter is stored in 16 bits."""


@dataclass(frozen=True)
class Evidence:
    """One task in one embedding space.

    Attributes:
        counts: images of each class, int64 [C].
        means: mean of their unit features, float32 [C, D]; 0 for a class without images.
        scatter: sum over images of the outer product of what separates them from their class's mean, float32 [D, D].
        held_out: ascending squared distances of the task's own images to the nearest class, each measured with means
            and covariance that did not see the image, float32 [H], at most `MAX_HELD_OUT`.
    """

    counts: torch.Tensor
    means: torch.Tensor
    scatter: torch.Tensor
    held_out: torch.Tensor

    @property
    def dof(self) -> int:
        """Degrees of freedom of the scatter: images less classes that have any."""
        return int(self.counts.sum() - (self.counts > 0).sum())

    def tensors(self) -> dict[str, torch.Tensor]:
        """What is stored. The scatter is in F16, divided by its degrees of freedom, where D is large."""
        wide = self.scatter.shape[0] > _WIDE
        scatter = (self.scatter / max(self.dof, 1)).half() if wide else self.scatter
        return {"counts": self.counts, "means": self.means, "scatter": scatter, "held_out": self.held_out}

    @classmethod
    def from_file(cls, file: TensorFile) -> Evidence:
        """Read what `tensors` gave. Raises `StateDictError` for a file that lacks a part."""
        counts, means, scatter, held_out = (file.tensor(name) for name in ("counts", "means", "scatter", "held_out"))
        found = cls(counts.clone(), means.clone(), scatter.float().clone(), held_out.clone())
        if scatter.dtype == torch.float16:
            return cls(found.counts, found.means, found.scatter * max(found.dof, 1), found.held_out)
        return found

    def combined(self, other: Evidence) -> Evidence:
        """That of both sets of images together (of the same classes). Exact but for `held_out`.

        The held-out distances are pooled as they are: those of either part were measured with fewer images than there
        are now, so they err towards larger, which is towards "familiar".
        """
        counts = self.counts + other.counts
        weights = torch.stack([self.counts, other.counts]) / counts.clamp(min=1)
        means = weights[0, :, None] * self.means + weights[1, :, None] * other.means
        apart = (self.counts * other.counts / counts.clamp(min=1)).sqrt()[:, None] * (self.means - other.means)
        held_out = _thinned(torch.cat([self.held_out, other.held_out]))
        return Evidence(counts, means, self.scatter + other.scatter + apart.T @ apart, held_out)


def measure_evidence(features: torch.Tensor, labels: torch.Tensor, num_classes: int) -> Evidence:
    """Evidence of a task's training images.

    Args:
        features: unit image features, un-augmented, float32 [N, D].
        labels: int64 [N].
        num_classes: C.
    """
    counts, means, scatter = _sums(features.double(), labels, num_classes)
    held_out = _held_out(features.double(), labels, num_classes)
    return Evidence(counts, means.float(), scatter.float(), held_out)


def shrunk(covariance: torch.Tensor) -> torch.Tensor:
    """(1 - SHRINKAGE) A + SHRINKAGE (tr A / D) I, of a float64 [D, D]. I / D where A is 0."""
    size = covariance.shape[0]
    spread = covariance.diagonal().sum() / size
    identity = torch.eye(size, dtype=covariance.dtype)
    if not spread > 0:
        return identity / size
    return (1 - SHRINKAGE) * covariance + SHRINKAGE * spread * identity


def whitener(covariance: torch.Tensor) -> torch.Tensor:
    """A matrix M, float64 [D, D], with (f - m) W^-1 (f - m) = |f M - m M|^2 for W = `shrunk(covariance)`."""
    lower = torch.linalg.cholesky(shrunk(covariance))
    identity = torch.eye(lower.shape[0], dtype=lower.dtype)
    return torch.linalg.solve_triangular(lower, identity, upper=False).T


def squared_distances(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """|l - r|^2 of every pair of rows, [B, D] and [C, D] to [B, C], never below 0."""
    product = left @ right.T
    return (left.square().sum(1)[:, None] + right.square().sum(1)[None] - 2 * product).clamp(min=0)


def _sums(features: torch.Tensor, labels: torch.Tensor, num_classes: int) -> tuple[torch.Tensor, ...]:
    counts = torch.bincount(labels, minlength=num_classes)
    sums = torch.zeros(num_classes, features.shape[1], dtype=features.dtype).index_add_(0, labels, features)
    means = sums / counts.clamp(min=1)[:, None]
    centred = features - means[labels]
    return counts, means, centred.T @ centred


def _held_out(features: torch.Tensor, labels: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Distances with means and covariance from the other folds, sorted. Folds are drawn evenly from every class."""
    rank = torch.zeros_like(labels)
    for label in labels.unique().tolist():
        own = labels == label
        rank[own] = torch.arange(int(own.sum()))
    found: list[torch.Tensor] = []
    for fold in range(NUM_FOLDS):
        out = rank % NUM_FOLDS == fold
        if not out.any() or out.all():
            continue
        counts, means, scatter = _sums(features[~out], labels[~out], num_classes)
        dof = int(counts.sum() - (counts > 0).sum())
        white = whitener(scatter / max(dof, 1))
        distances = squared_distances(features[out] @ white, means[counts > 0] @ white)
        found.append(distances.amin(1))
    return _thinned(torch.cat(found).float() if found else torch.empty(0))


def _thinned(distances: torch.Tensor) -> torch.Tensor:
    """Sorted; of more than `MAX_HELD_OUT` the ones at even ranks, the smallest and the largest among them."""
    ordered = distances.sort().values
    if len(ordered) <= MAX_HELD_OUT:
        return ordered
    return ordered[torch.linspace(0, len(ordered) - 1, MAX_HELD_OUT).round().long()]


def pooled_covariance(evidence: Mapping[str, Evidence]) -> torch.Tensor:
    """Mean of the tasks' covariances S_t / dof_t, weighted by dof_t / (dof_t + D), float64 [D, D]; 0 without any."""
    size = next(iter(evidence.values())).scatter.shape[0]
    total, weights = torch.zeros(size, size, dtype=torch.float64), 0.0
    for one in evidence.values():
        if one.dof > 0:
            weight = one.dof / (one.dof + size)
            total += weight * one.scatter.double() / one.dof
            weights += weight
    return total / weights if weights else total
