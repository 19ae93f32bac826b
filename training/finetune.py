"""Fine-tune one CLIP on one task: a plain loop without Ray, store or configuration.

A step is a function of seed, step number and weights alone (sampling, augmentation and template are drawn from
seed and step), so a training resumed from its state after step s ends with exactly the weights of an undisturbed one.

Cost with method `full`: weights, gradients and two AdamW moments in fp32, 16 bytes per parameter (2.4 GB for a
ViT-B/16), and activations. Letters: B images of this worker, C classes, L tokens of a text.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from fusion.answers.clip import Clip
from fusion.errors import ConduError, ConfigError
from fusion.tensors import TensorFile
from training.batches import Batches
from training.data.task_data import TaskData
from training.held_out import HeldOutFigures, held_out_images, measure_held_out
from training.methods import open_method
from training.objective import Objective
from training.probe import class_directions, fit_texts, prompt_tokens
from training.recipe import Recipe
from training.recomputation import recomputed_activations
from training.samplers import generator_for
from training.state_saver import State, StateSaver
from training.trained_weights import TrainedWeights
from training.validation import Validation, ValidationFigures
from training.worker_group import WorkerGroup

logger = logging.getLogger(__name__)

_FEATURE_BATCH = 64
_HELD_OUT = "held_out"
"""The tensor of a resumable state that keeps what the held-out images told."""


class TrainingDivergedError(ConduError):
    """A loss that is not finite."""


@dataclass(frozen=True)
class FinetuneResult:
    """What a fine-tuning made.

    Attributes:
        expert: the full state dict under the base's names, floats in fp32. It may share the model's memory. None where
            the method drops an expert that is not needed.
        held_out: what the held-out images told; None where none were held out. In rank 0 only.
        validation: the best evaluation; None without early stopping. In rank 0 only.
        final_loss: of the last step's batch; NaN if the state was past the last step.
        steps: steps done: the recipe's, if training did not stop before.
        seconds: of this run alone.
    """

    expert: dict[str, torch.Tensor] | None
    final_loss: float
    steps: int
    seconds: float
    held_out: HeldOutFigures | None = None
    validation: ValidationFigures | None = None


def finetune(
    clip: Clip,
    data: TaskData,
    recipe: Recipe,
    *,
    seed: int,
    base_features: torch.Tensor | None = None,
    state: Path | None = None,
    on_progress: Callable[[int, float], None] | None = None,
    on_state: Callable[[int, State], None] | None = None,
    workers: WorkerGroup | None = None,
    num_loader_threads: int = 0,
) -> FinetuneResult:
    """Fine-tune `clip` in place, by the recipe's method. It stays in eval mode and keeps the base's architecture.

    Args:
        clip: the base, on the device to train on.
        data: a task with training images.
        recipe: all settings.
        seed: of every random number.
        base_features: `image_features` by `clip` as it is now, float32 [N, D], for the probe and the held-out images;
            None: computed where they are needed. Only rank 0's are used.
        state: tensors of `on_state` to resume from. Only rank 0's counts: the others receive it from there.
        on_progress: called after every step with the number of steps done and the global batch's loss.
        on_state: makes a resumable state durable: called in rank 0 when a save is due, in a thread beside the steps,
            with the steps done and a copy of all that is needed to resume. None is being written when this returns.
        workers: the workers that share every batch. Their process group has to exist.
        num_loader_threads: threads that decode the next batch during a step.
    Raises:
        TrainingDivergedError: the loss became NaN or infinite, in every rank at the same step.
        whatever `on_state` raises, at a later step or at the end.
        DataError: an image can't be decoded.
        StateDictError: `state` belongs to another model.
    """
    workers = workers or WorkerGroup()
    _check_shares(recipe, workers)
    started = time.monotonic()
    names = set(clip.model.state_dict())
    validation = Validation(clip, data, recipe, workers)
    look = _Look(clip, data, recipe, workers, base_features, hides=validation.holds_out)
    method = open_method(recipe.method)
    method.prepare(clip.model, recipe, generator_for(seed, "method", 0))
    weights = TrainedWeights(method, clip.model, recipe)
    done = weights.resume(state, workers)
    figures = look.resume(state)
    validation.resume(state)
    if done == 0:
        look.before(weights)
    objective = Objective(clip, data, recipe, seed, workers)
    hidden = recipe.steps if validation.holds_out else recipe.held_out_steps
    batches = Batches(
        clip, data.train, recipe, seed=seed, workers=workers, held_out_steps=hidden, num_threads=num_loader_threads
    )
    saver = StateSaver(recipe, on_state if workers.rank == 0 else None)
    loss = math.nan
    with _ready_to_train(clip.model, recipe), batches, saver:
        for step in range(done, recipe.steps):
            if step == recipe.held_out_steps and look.holds_out:
                figures = look.measure()
                if method.may_drop and workers.any(figures is not None and not figures.needed):
                    return FinetuneResult(None, loss, step, time.monotonic() - started, figures)
            weights.clear_gradients()
            loss = workers.sum(objective.add_gradients(step, *batches.batch(step))) / recipe.batch_size
            _check_finite(loss, step, data.name, recipe)
            weights.update(step)
            done = step + 1
            if on_progress:
                on_progress(done, loss)
            if validation.ends(done, weights):
                break
            if saver.due(done):
                saver.begin(done, weights.state(done) | look.state(figures) | validation.state())
    weights.finish()
    expert = method.merge(clip.model)
    assert expert.keys() == names, f"method {recipe.method!r} gives other tensors than the base has"
    return FinetuneResult(expert, loss, done, time.monotonic() - started, figures, validation.figures)


def image_features(clip: Clip, data: TaskData) -> torch.Tensor:
    """Unit features of the training images that are looked at (`TaskData.look`), un-augmented, float32 [N, D]."""
    images = data.look
    found: torch.Tensor | None = None
    for batch in images.passed(_FEATURE_BATCH):
        features = clip.image_features(clip.pixels([images.image(index) for index in batch.tolist()]))
        found = torch.empty(len(images), features.shape[1]) if found is None else found
        found[torch.from_numpy(batch)] = features
    assert found is not None, "a task to train has images"
    return found


class _Look:
    """What is seen of the training images as they are, before and between the steps: the probe, and held-out images.

    `hides`: held-out images are not seen at all, since they validate.
    """

    def __init__(
        self,
        clip: Clip,
        data: TaskData,
        recipe: Recipe,
        workers: WorkerGroup,
        base_features: torch.Tensor | None,
        *,
        hides: bool,
    ) -> None:
        self._clip, self._data, self._recipe, self._workers = clip, data, recipe, workers
        self._labels = torch.from_numpy(data.look.labels)
        out = held_out_images(torch.from_numpy(data.train.labels))[torch.from_numpy(data.looked_at)]
        self.holds_out = recipe.held_out_steps > 0 and bool(out.any())
        self._shown = ~out if self.holds_out or hides else torch.ones_like(out)
        wanted = workers.rank == 0 and (recipe.probe_steps > 0 or self.holds_out)
        self._features = image_features(clip, data) if wanted and base_features is None else base_features

    def before(self, weights: TrainedWeights) -> None:
        """The probe, where the recipe has one: rank 0's text encoder, in every rank."""
        if not self._recipe.probe_steps:
            return
        if self._workers.rank == 0:
            assert self._features is not None
            data, shown = self._data, self._shown
            directions = class_directions(self._features[shown], self._labels[shown], len(data.classes))
            tokens = prompt_tokens(self._clip.tokenizer, data.classes, data.templates).to(self._clip.device)
            with weights.texts_unfrozen() as parameters:
                wanted, seen = (part.to(self._clip.device) for part in (directions, self._features[shown]))
                cosine = fit_texts(self._clip.model, parameters, tokens, wanted, seen, self._recipe)
            logger.info("probe task=%s cosine=%.3f", data.name, cosine)
        for parameter in weights.text_parameters:
            self._workers.copy_from_first(parameter.detach())

    def measure(self) -> HeldOutFigures | None:
        """What the held-out images tell, in rank 0."""
        if self._workers.rank:
            return None
        assert self._features is not None
        with torch.no_grad():
            features = image_features(self._clip, self._data)
            return measure_held_out(self._clip, self._data, self._features, features, ~self._shown)

    def resume(self, state: Path | None) -> HeldOutFigures | None:
        """What an earlier attempt was told, if its state is past that point."""
        if state is None or not self.holds_out or _HELD_OUT not in (file := TensorFile(state)):
            return None
        return HeldOutFigures.from_tensor(file.tensor(_HELD_OUT))

    def state(self, figures: HeldOutFigures | None) -> dict[str, torch.Tensor]:
        """What a resumable state has to keep of the held-out images."""
        return {_HELD_OUT: figures.tensor()} if figures else {}


def _check_finite(loss: float, step: int, task: str, recipe: Recipe) -> None:
    if not math.isfinite(loss):
        raise TrainingDivergedError(
            f"task {task!r}: the loss is {loss} at step {step} of {recipe.steps} (lr {recipe.learning_rate(step):.2e} "
            f"there, peak {recipe.lr:.2e}): train it with a lower lr or more warmup_steps"
        )


def _check_shares(recipe: Recipe, workers: WorkerGroup) -> None:
    if recipe.batch_size < workers.size * recipe.gradient_accumulation:
        parts = f", {recipe.gradient_accumulation} parts each" if recipe.gradient_accumulation > 1 else ""
        raise ConfigError(
            f"batch_size {recipe.batch_size} is smaller than {workers.size} workers{parts}: each needs an image per "
            "step"
        )


@contextmanager
def _ready_to_train(model: nn.Module, recipe: Recipe) -> Iterator[None]:
    """Eval mode: BatchNorm normalises by the base's statistics and leaves them alone. Gradients flow all the same."""
    model.eval()
    try:
        with torch.enable_grad(), recomputed_activations(model, enabled=recipe.gradient_checkpointing):
            yield
    finally:
        model.zero_grad(set_to_none=True)
