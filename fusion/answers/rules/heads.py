"""Tasks without an expert: the discriminant of the task's own images, in the frozen base's space, answers for them.

The base's texts have no say: on a task that they say nothing about, their logits are sharp and wrong, and they would
outvote the images (docs/method.md, "When no expert is needed").

Letters: B images, C classes, D dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fusion.answers.view import TaskView


def head_logits(task: TaskView, classes: Sequence[str], features: torch.Tensor) -> torch.Tensor:
    """Calibrated logits of some of the classes of a task without an expert, float64 [B, C].

    Args:
        features: unit base features, float32 [B, D].
    """
    assert task.evidence is not None, "a task without an expert is published with evidence"
    places = [task.classes.index(name) for name in classes]
    return task.evidence.discriminant.scores(features)[:, places] / task.temperature
