"""Evidence of a task: what its training images look like to the base and to its expert, in a few sums.

It tells whose an image is, how usual it would be there, and which class it is of. It is computed from the task's own
images when it is trained; no old data is needed later.

Letters: N images, C classes, D dimensions of the embedding, H held-out distances. Source: docs/method.md, "Rules".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch

from fusion.answers.class_sums import ClassSums, Discriminant, sum_classes
from fusion.tensors import TensorFile

NUM_FOLDS = 5
DISCRIMINANT_WEIGHT = 2.0
"""How much the expert's discriminant counts beside its texts. Chosen on held-out training images (docs/method.md)."""
MAX_HELD_OUT = 1000
_EXPERT = "expert/"


@dataclass(frozen=True)
class Evidence:
    """What is kept of one task's images.

    Attributes:
        base: their sums in the base's space.
        held_out: ascending squared distances of the images to the nearest class in the base's space, each measured with
            means and covariance that did not see the image, float32 [H], at most `MAX_HELD_OUT`.
        expert: their sums in the space of the task's expert; None for a task without one, or where it was not kept.
        temperature: what the task's logits are divided by, fitted on images that training had not seen; 1 where none
            were held out.
    """

    base: ClassSums
    held_out: torch.Tensor
    expert: ClassSums | None = None
    temperature: float = 1.0

    @cached_property
    def discriminant(self) -> Discriminant:
        """Of the base's features. Derived once, on first use, and shared by every version that has the task."""
        return Discriminant(self.base)

    def tensors(self) -> dict[str, torch.Tensor]:
        """What is stored (docs/format.md)."""
        own = self.expert.tensors(_EXPERT) if self.expert else {}
        return {
            **self.base.tensors(),
            **own,
            "held_out": self.held_out,
            "temperature": torch.tensor([self.temperature]),
        }

    @classmethod
    def from_file(cls, file: TensorFile) -> Evidence:
        """Read what `tensors` gave. Raises `StateDictError` for a file that lacks a part."""
        return cls(
            base=ClassSums.from_file(file),
            held_out=file.tensor("held_out").clone(),
            expert=ClassSums.from_file(file, _EXPERT) if f"{_EXPERT}counts" in file else None,
            temperature=float(file.tensor("temperature")[0]) if "temperature" in file else 1.0,
        )

    def combined(self, other: Evidence) -> Evidence:
        """That of both sets of images together (of the same classes and expert). Exact but for `held_out`.

        The held-out distances are pooled as they are: those of either part were measured with fewer images than there
        are now, so they err towards larger, which is towards "familiar". The temperature stays this one's.
        """
        own = self.expert.combined(other.expert) if self.expert and other.expert else None
        held_out = _thinned(torch.cat([self.held_out, other.held_out]))
        return Evidence(self.base.combined(other.base), held_out, own, self.temperature)


def measure_evidence(features: torch.Tensor, labels: torch.Tensor, num_classes: int) -> Evidence:
    """Evidence of a task's training images, as the base sees them.

    Args:
        features: unit image features of the base, un-augmented, float32 [N, D].
        labels: int64 [N].
        num_classes: C.
    """
    return Evidence(sum_classes(features, labels, num_classes), _held_out(features, labels, num_classes))


def joined_logits(texts: torch.Tensor, discriminant: torch.Tensor) -> torch.Tensor:
    """An expert's two opinions as one, float64 [B, C]: logits by its texts, and scores by its discriminant."""
    return texts.double() + DISCRIMINANT_WEIGHT * discriminant


def folds(labels: torch.Tensor) -> torch.Tensor:
    """The fold of every image, int64 [N] below `NUM_FOLDS`: each class's images in turn, so all folds look alike."""
    rank = torch.zeros_like(labels)
    for label in labels.unique().tolist():
        own = labels == label
        rank[own] = torch.arange(int(own.sum()))
    return rank % NUM_FOLDS


def cross_fitted(
    features: torch.Tensor, labels: torch.Tensor, num_classes: int
) -> Iterator[tuple[torch.Tensor, Discriminant]]:
    """Each fold's images, bool [N], and the discriminant of all others. No fold where it would leave no image."""
    fold_of = folds(labels)
    for fold in range(NUM_FOLDS):
        out = fold_of == fold
        if out.any() and not out.all():
            yield out, Discriminant(sum_classes(features[~out], labels[~out], num_classes))


def _held_out(features: torch.Tensor, labels: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Distances with means and covariance from the other folds, sorted."""
    fitted = cross_fitted(features, labels, num_classes)
    found = [others.distances(features[out]).amin(1) for out, others in fitted]
    return _thinned(torch.cat(found).float() if found else torch.empty(0))


def _thinned(distances: torch.Tensor) -> torch.Tensor:
    """Sorted; of more than `MAX_HELD_OUT` the ones at even ranks, the smallest and the largest among them."""
    ordered = distances.sort().values
    if len(ordered) <= MAX_HELD_OUT:
        return ordered
    return ordered[torch.linspace(0, len(ordered) - 1, MAX_HELD_OUT).round().long()]


def pooled_covariance(evidence: Mapping[str, Evidence]) -> torch.Tensor:
    """Mean of the tasks' covariances S_t / dof_t, weighted by dof_t / (dof_t + D), float64 [D, D]; 0 without any."""
    size = next(iter(evidence.values())).base.scatter.shape[0]
    total, weights = torch.zeros(size, size, dtype=torch.float64), 0.0
    for one in evidence.values():
        if one.base.dof > 0:
            weight = one.base.dof / (one.base.dof + size)
            total += weight * one.base.covariance()
            weights += weight
    return total / weights if weights else total
