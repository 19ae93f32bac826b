"""Prototypes: one unit vector per class, in the base's embedding space, and the routing based on them.

Letters: N or B images, C classes, D embedding dimensions, T tasks.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch.nn.functional import normalize


def class_prototypes(image_features: torch.Tensor, labels: torch.Tensor, text_features: torch.Tensor) -> torch.Tensor:
    """Prototypes of one task: normalize(half the mean of unit image features + half the mean of unit text features).

    Args:
        image_features: unit base features of the task's training images, un-augmented, float32 [N, D].
        labels: int64 [N].
        text_features: base text features of its classes, means over its templates, float32 [C, D].
    Returns: float32 [C, D]; a class without images has its text half alone.
    """
    num_classes = text_features.shape[0]
    sums = torch.zeros_like(text_features).index_add_(0, labels, image_features)
    counts = torch.bincount(labels, minlength=num_classes).unsqueeze(1)
    images = sums / counts.clamp(min=1)
    return normalize(torch.where(counts > 0, 0.5 * images + 0.5 * text_features, text_features), dim=-1)


def route_scores(image_features: torch.Tensor, prototypes: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Score of every task for every image: the largest cosine to one of the task's prototypes, float32 [B, T].

    Args:
        image_features: unit base features, float32 [B, D].
        prototypes: task name to float32 [C, D]; the columns of the result are in this order.
    """
    if not prototypes:
        return torch.empty(image_features.shape[0], 0)
    return torch.stack([(image_features @ protos.T).amax(1) for protos in prototypes.values()], dim=1)


def top_tasks(scores: torch.Tensor, top_k: int) -> torch.Tensor:
    """Columns of the `top_k` best tasks of every image, best first, int64 [B, min(top_k, T)]. Ties: older first."""
    order = torch.sort(scores, dim=1, descending=True, stable=True).indices
    return order[:, :top_k]
