"""Early stopping: images that no step trains on say when more steps bring nothing, and whose step's weights are best.

They are the data's own validation split, where it has one beside its test split, else a fifth of each class's training
images (`training.held_out`). An evaluation asks the model by its texts: all templates, no augmentation. Better is more
accurate; of two that are equally accurate, the one with the smaller cross-entropy. Everything is a function of data,
seed and weights, so a resumed training stops at the same step.

Memory: the images' pixels, of at most `MOST` of them (0.6 GB at 224 pixels), and the best weights, 4 bytes a parameter.
Letters: V images, C classes, D dimensions, H x W pixels of the model's input.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from fusion.answers.clip import LOGIT_SCALE, Clip
from fusion.errors import DataError
from fusion.tensors import TensorFile
from training.batches import Pixels, channel_statistics
from training.data.images import ImageSet
from training.data.task_data import TaskData
from training.held_out import held_out_images
from training.recipe import Recipe
from training.recorded_figures import RecordedFigures
from training.trained_weights import TrainedWeights
from training.worker_group import WorkerGroup

logger = logging.getLogger(__name__)

MOST = 4096
"""Of more images about so many are asked: the error of their accuracy is below a point."""
_BATCH = 64
_GO_ON, _BETTER, _STOP = range(3)
_STATE = "validation"
"""The tensor of a resumable state that keeps the figures."""


@dataclass(frozen=True)
class ValidationFigures(RecordedFigures):
    """The best evaluation.

    Attributes:
        best_step: the steps done by then; its weights are the expert's.
        accuracy: share of the validation images.
        loss: mean cross-entropy, nats.
        num_images: V.
        worse: evaluations since then.
    """

    prefix = "validation_"

    best_step: float
    accuracy: float
    loss: float
    num_images: float
    worse: float = 0.0

    def beats(self, other: ValidationFigures | None) -> bool:
        return other is None or (self.accuracy, -self.loss) > (other.accuracy, -other.loss)


def validation_images(data: TaskData) -> ImageSet:
    """The images that say when to stop. Raises `DataError` where there are none."""
    if data.validation is not None:
        images, chosen = data.validation, np.arange(len(data.validation))
    else:
        images, chosen = data.train, _held_out(data)
    if not len(chosen):
        raise DataError(
            f"task {data.name!r}: early_stop needs validation images, and no class has five training images of which "
            "one could be held out: add a val split, or train without early_stop"
        )
    if len(chosen) > MOST:  # sorted by class, so every class keeps its share
        chosen = chosen[np.linspace(0, len(chosen) - 1, MOST).round().astype(np.int64)]
    return images if len(chosen) == len(images) else images.take(chosen)


def _held_out(data: TaskData) -> np.ndarray:
    return np.flatnonzero(held_out_images(torch.from_numpy(data.train.labels)).numpy())


class Validation:
    """The evaluations of one training. All ranks call the same methods; rank 0 looks at images.

    Raises `DataError` where there are no images, if the recipe asks for them.
    """

    def __init__(self, clip: Clip, data: TaskData, recipe: Recipe, workers: WorkerGroup) -> None:
        self._clip, self._data, self._recipe, self._workers = clip, data, recipe, workers
        self.holds_out = recipe.early_stop is not None and data.validation is None
        """Whether training images are kept from the steps for this."""
        self.figures: ValidationFigures | None = None
        """Of the best evaluation so far, in rank 0."""
        self._images = validation_images(data) if recipe.early_stop is not None else None
        self._pixels: torch.Tensor | None = None

    def resume(self, state: Path | None) -> None:
        """Go on with the figures of a state."""
        if state is not None and _STATE in (file := TensorFile(state)):
            self.figures = ValidationFigures.from_tensor(file.tensor(_STATE))

    def state(self) -> dict[str, torch.Tensor]:
        """What a resumable state has to keep of them."""
        return {_STATE: self.figures.tensor()} if self.figures else {}

    def ends(self, done: int, weights: TrainedWeights) -> bool:
        """Evaluate if it is time, keep the weights if they are the best so far; whether training ends here."""
        recipe = self._recipe
        if recipe.early_stop is None or (done % recipe.validate_every_steps and done < recipe.steps):
            return False
        outcome = self._workers.from_first(self._evaluate(done) if self._workers.rank == 0 else _GO_ON)
        if outcome == _BETTER:
            weights.keep()
        return outcome == _STOP

    def _evaluate(self, done: int) -> int:
        found = self._measured(done)
        told = self._data.name, done, found.accuracy, found.loss
        logger.info("validation task=%s step=%d accuracy=%.4f loss=%.4f", *told)
        if found.beats(self.figures):
            self.figures = found
            return _BETTER
        assert self.figures is not None, "the first evaluation is the best"
        worse = self.figures.worse + 1
        self.figures = replace(self.figures, worse=worse)
        assert self._recipe.early_stop is not None, "nothing is evaluated without it"
        return _STOP if worse >= self._recipe.early_stop else _GO_ON

    def _measured(self, done: int) -> ValidationFigures:
        images = self._images
        assert images is not None, "nothing is evaluated without images"
        if self._pixels is None:
            self._pixels = _pixels(self._clip, images)
        mean, std = channel_statistics(self._clip)
        features = torch.cat([
            self._clip.image_features((pixels.float() / 255 - mean) / std) for pixels in self._pixels.split(_BATCH)
        ])  # fmt: skip
        logits = LOGIT_SCALE * features @ self._clip.class_features(self._data.classes, self._data.templates).T
        labels = torch.from_numpy(images.labels)
        right = (logits.argmax(1) == labels).double().mean()
        return ValidationFigures(done, float(right), float(cross_entropy(logits, labels)), len(labels))


def _pixels(clip: Clip, images: ImageSet) -> torch.Tensor:
    """The images at the model's size, uint8 [V, 3, H, W]."""
    found = torch.empty(len(images), 3, *clip.image_size, dtype=torch.uint8)
    with Pixels(clip, images, clip.image_size) as pixels:
        for batch in images.passed(_BATCH):
            pixels.expect(batch.tolist())
            found[torch.from_numpy(batch)] = pixels.batch(batch.tolist())
    return found
