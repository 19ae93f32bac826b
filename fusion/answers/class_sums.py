"""Sums over a task's images in one embedding space, and the linear discriminant that they make.

Everything here is computed from one task's own images when it is trained; no old data is needed later. The sums combine
over workers and over images that are added later.

Letters: B or N images, C classes, D dimensions of the embedding. Source: docs/method.md, "Rules".
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from fusion.tensors import TensorFile

SHRINKAGE = 0.1
"""Share of a covariance that is spread evenly over all directions, so that few images still give an invertible one."""

_WIDE = 512
"""Above this many dimensions the scatter is stored in 16 bits."""


@dataclass(frozen=True)
class ClassSums:
    """Images of one task in one embedding space.

    Attributes:
        counts: images of each class, int64 [C].
        means: mean of their unit features, float32 [C, D]; 0 for a class without images.
        scatter: sum over images of the outer product of what separates them from their class's mean, float32 [D, D].
    """

    counts: torch.Tensor
    means: torch.Tensor
    scatter: torch.Tensor

    @property
    def dof(self) -> int:
        """Degrees of freedom of the scatter: images less classes that have any."""
        return int(self.counts.sum() - (self.counts > 0).sum())

    def covariance(self) -> torch.Tensor:
        """Within classes, float64 [D, D]; 0 where no class has two images."""
        return self.scatter.double() / max(self.dof, 1)

    def tensors(self, prefix: str = "") -> dict[str, torch.Tensor]:
        """What is stored. The scatter is in F16, divided by its degrees of freedom, where D is large."""
        wide = self.scatter.shape[0] > _WIDE
        scatter = self.covariance().half() if wide else self.scatter
        return {f"{prefix}counts": self.counts, f"{prefix}means": self.means, f"{prefix}scatter": scatter}

    @classmethod
    def from_file(cls, file: TensorFile, prefix: str = "") -> ClassSums:
        """Read what `tensors` gave. Raises `StateDictError` for a file that lacks a part."""
        counts, means, scatter = (file.tensor(prefix + name).clone() for name in ("counts", "means", "scatter"))
        found = cls(counts, means, scatter.float())
        if scatter.dtype == torch.float16:
            return cls(counts, means, found.scatter * max(found.dof, 1))
        return found

    def combined(self, other: ClassSums) -> ClassSums:
        """Those of both sets of images together, of the same classes in the same space."""
        counts = self.counts + other.counts
        weights = torch.stack([self.counts, other.counts]) / counts.clamp(min=1)
        means = weights[0, :, None] * self.means + weights[1, :, None] * other.means
        apart = (self.counts * other.counts / counts.clamp(min=1)).sqrt()[:, None] * (self.means - other.means)
        return ClassSums(counts, means, self.scatter + other.scatter + apart.T @ apart)


def sum_classes(features: torch.Tensor, labels: torch.Tensor, num_classes: int) -> ClassSums:
    """The sums of unit features [N, D] with labels int64 [N], computed in float64."""
    values = features.double()
    counts = torch.bincount(labels, minlength=num_classes)
    sums = torch.zeros(num_classes, values.shape[1], dtype=values.dtype).index_add_(0, labels, values)
    means = sums / counts.clamp(min=1)[:, None]
    centred = values - means[labels]
    return ClassSums(counts, means.float(), (centred.T @ centred).float())


class Discriminant:
    """Which class an image is of, by a linear discriminant with the task's own covariance. Safe to share.

    Args:
        sums: of the task's images, in the space of the features that will be asked about.
    """

    def __init__(self, sums: ClassSums) -> None:
        self._white = whitener(sums.covariance())
        self._means = sums.means.double() @ self._white
        self._empty = sums.counts == 0
        self._scale = 2 * math.sqrt(sums.means.shape[1])

    def distances(self, features: torch.Tensor) -> torch.Tensor:
        """(f - mu_c) W^-1 (f - mu_c), float64 [B, C], of unit features [B, D]. A class without images is as far as the
        farthest one."""
        distances = squared_distances(features.double() @ self._white, self._means)
        if not self._empty.any() or self._empty.all():
            return distances
        farthest = distances[:, ~self._empty].amax(1, keepdim=True)
        return torch.where(self._empty, farthest, distances)

    def scores(self, features: torch.Tensor) -> torch.Tensor:
        """Log-likelihoods of the classes, float64 [B, C]: minus half the distances, divided by sqrt(D).

        Differences of D correlated terms spread like sqrt(D), so that is what makes them comparable to logits.
        """
        return -self.distances(features) / self._scale


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
