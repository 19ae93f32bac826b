"""Images that training leaves out at first: what they tell of an expert that has not seen them.

A fifth of each class's images is held out during the first part of the steps (`held_out` of the recipe). Then expert
and head (the discriminant of the frozen base's features, which needs no training) are measured on them, and the rest of
the steps uses every image. So no image is lost, and the measurement errs on the expert's side: towards worse.

Letters: N training images, H held-out ones, C classes, D dimensions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.nn.functional import cross_entropy

from fusion.answers.class_sums import Discriminant, sum_classes
from fusion.answers.clip import LOGIT_SCALE, Clip
from fusion.answers.evidence import NUM_FOLDS, cross_fitted, folds, joined_logits
from training.data.task_data import TaskData
from training.metrics import Z_95
from training.recorded_figures import RecordedFigures

_PRIOR_IMAGES = 10.0
"""How many images' worth of belief says that logits are calibrated as they are: few images change little."""
_LOG_TEMPERATURES = torch.linspace(math.log(0.2), math.log(10.0), 200, dtype=torch.float64)


@dataclass(frozen=True)
class HeldOutFigures(RecordedFigures):
    """What held-out images tell. Accuracies are shares of them.

    Attributes:
        num_images: H.
        temperature: of the expert's joined logits.
        expert: accuracy of the expert with its texts and its discriminant joined.
        head: accuracy of the discriminant of the base's features.
        gain: expert less head.
        error: half of the 95 % interval of the gain, paired over images.
    """

    prefix = "held_out_"

    num_images: float
    temperature: float
    expert: float
    head: float
    gain: float
    error: float

    @property
    def needed(self) -> bool:
        """Whether the expert brings more than its error bars over the head."""
        return self.gain > self.error


def held_out_images(labels: torch.Tensor) -> torch.Tensor:
    """Which images are held out, bool [N]: the last of every five of a class, none of a class with fewer than five."""
    return folds(labels) == NUM_FOLDS - 1


def measure_held_out(
    clip: Clip, data: TaskData, base_features: torch.Tensor, features: torch.Tensor, out: torch.Tensor
) -> HeldOutFigures:
    """Measure expert and head on the held-out images.

    Args:
        clip: the expert as far as it is trained, for its texts.
        base_features, features: of the images that are looked at, by the base and by the expert, unit, float32 [N, D].
        out: which of them are held out, bool [N].
    """
    labels, num_classes = torch.from_numpy(data.look.labels), len(data.classes)
    asked = labels[out]
    texts = clip.class_features(data.classes, data.templates)
    own = Discriminant(sum_classes(features[~out], labels[~out], num_classes)).scores(features[out])
    joined = joined_logits(LOGIT_SCALE * features[out] @ texts.T, own)
    head = Discriminant(sum_classes(base_features[~out], labels[~out], num_classes)).scores(base_features[out])
    expert_right, head_right = ((logits.argmax(1) == asked).double() for logits in (joined, head))
    gain = expert_right - head_right
    return HeldOutFigures(
        num_images=float(len(asked)),
        temperature=fit_temperature(joined, asked),
        expert=float(expert_right.mean()),
        head=float(head_right.mean()),
        gain=float(gain.mean()),
        error=Z_95 * float(gain.var(correction=0) / len(gain)) ** 0.5,
    )


def head_temperature(base_features: torch.Tensor, labels: torch.Tensor, num_classes: int) -> float:
    """Temperature of the head's scores, cross-fitted over all training images. 1 where no class has two images."""
    scores = torch.zeros(len(labels), num_classes, dtype=torch.float64)
    for out, others in cross_fitted(base_features, labels, num_classes):
        scores[out] = others.scores(base_features[out])
    return fit_temperature(scores, labels)


def fit_temperature(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """The temperature that gives labels [H] the least cross-entropy under logits / temperature, float64 [H, C].

    A weak prior at 1 keeps it there where there are few images. Source: Guo et al. 2017 (arXiv 1706.04599).
    """
    losses = [
        float(cross_entropy(logits / math.exp(log), labels, reduction="sum")) + _PRIOR_IMAGES * float(log) ** 2 / 2
        for log in _LOG_TEMPERATURES
    ]
    return math.exp(float(_LOG_TEMPERATURES[losses.index(min(losses))]))
