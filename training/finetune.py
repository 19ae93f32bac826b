"""Fine-tune one CLIP on one task: a plain loop without Ray, store or configuration.

A step is a function of seed, step number and weights alone (sampling, augmentation and template are drawn from
seed and step), so a training resumed from its state after step s ends with exactly the weights of an undisturbed one.

Cost with method `full`: weights, gradients and two AdamW moments in fp32, 16 bytes per parameter (2.4 GB for a
ViT-B/16), and activations. Letters: B images of this worker, C classes, L tokens of a text.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from fusion.answers.clip import Clip
from fusion.answers.prompts import prompts
from fusion.errors import ConduError, ConfigError
from training.batches import Batches, generator_for
from training.data import TaskData
from training.methods import open_method
from training.recipe import Recipe
from training.trained_weights import TrainedWeights
from training.worker_group import WorkerGroup


class TrainingDivergedError(ConduError):
    """A loss that is not finite."""


@dataclass(frozen=True)
class FinetuneResult:
    """What a fine-tuning made.

    Attributes:
        expert: the full state dict under the base's names, floats in fp32. It may share the model's memory.
        final_loss: of the last step's batch; NaN if the state was past the last step.
        steps: of the recipe.
        seconds: of this run alone.
    """

    expert: dict[str, torch.Tensor]
    final_loss: float
    steps: int
    seconds: float


def finetune(
    clip: Clip,
    data: TaskData,
    recipe: Recipe,
    *,
    seed: int,
    state: Path | None = None,
    on_progress: Callable[[int, float], None] | None = None,
    on_state: Callable[[int, dict[str, torch.Tensor]], None] | None = None,
    workers: WorkerGroup | None = None,
    num_loader_threads: int = 0,
) -> FinetuneResult:
    """Fine-tune `clip` in place, by the recipe's method. It stays in eval mode and keeps the base's architecture.

    Args:
        clip: the base, on the device to train on.
        data: a task with training images.
        recipe: all settings.
        seed: of every random number.
        state: tensors of `on_state` to resume from. Only rank 0's counts: the others receive it from there.
        on_progress: called after every step with the number of steps done and the global batch's loss.
        on_state: called in rank 0 every `recipe.save_every_steps` with the steps done and all that is needed to resume;
            the tensors are the live ones, to be written before it returns.
        workers: the workers that share every batch. Their process group has to exist.
        num_loader_threads: threads that decode the next batch during a step.
    Raises:
        TrainingDivergedError: the loss became NaN or infinite, in every rank at the same step.
        DataError: an image can't be decoded.
        StateDictError: `state` belongs to another model.
    """
    workers = workers or WorkerGroup()
    if recipe.batch_size < workers.size:
        raise ConfigError(
            f"batch_size {recipe.batch_size} is smaller than {workers.size} workers: each needs an image per step"
        )
    started = time.monotonic()
    names = set(clip.model.state_dict())
    method = open_method(recipe.method)
    method.prepare(clip.model, recipe, generator_for(seed, "method", 0))
    weights = TrainedWeights(method, clip.model, recipe)
    done = weights.resume(state, workers)
    objective = _Objective(clip, data, recipe, seed, workers)
    batches = Batches(clip, data.train, recipe, seed=seed, workers=workers, num_threads=num_loader_threads)
    loss = math.nan
    with _kept_in_eval_mode(clip.model), batches:
        for step in range(done, recipe.steps):
            total = objective.loss(step, *batches.batch(step))
            loss = workers.sum(float(total.detach())) / recipe.batch_size
            _check_finite(loss, step, data.name, recipe)
            share = workers.size / recipe.batch_size  # DDP divides by the number of workers
            weights.update(total * share, recipe.learning_rate(step))
            done = step + 1
            if on_progress:
                on_progress(done, loss)
            if on_state and workers.rank == 0 and done < recipe.steps and done % recipe.save_every_steps == 0:
                on_state(done, weights.state(done))
    expert = method.merge(clip.model)
    assert expert.keys() == names, f"method {recipe.method!r} gives other tensors than the base has"
    return FinetuneResult(expert, loss, recipe.steps, time.monotonic() - started)


class _Objective:
    """The loss of a step, from its images: cross-entropy of the classes' prompts under the recipe's template."""

    def __init__(self, clip: Clip, data: TaskData, recipe: Recipe, seed: int, workers: WorkerGroup) -> None:
        self._tokens = _tokens(clip, data, recipe).to(clip.device)
        self._logits = _wrap(_Logits(clip.model), clip.device, workers)
        self._recipe = recipe
        self._seed = seed

    def loss(self, step: int, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Sum over this worker's share [B, 3, H, W] and [B] of the step's batch, a scalar with gradients."""
        tokens = self._tokens[_template_of(self._seed, step, len(self._tokens))]
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self._recipe.precision == "bf16"):
            logits = self._logits(images, tokens)
        return cross_entropy(logits.float(), labels, label_smoothing=self._recipe.label_smoothing, reduction="sum")


class _Logits(nn.Module):
    """Images and the classes' texts to logits, in one forward call, which is what DDP hooks into."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """[B, 3, H, W] and [C, L] to the model's scale x cosine, [B, C]."""
        image_features = self.model.encode_image(images, normalize=True)  # type: ignore[operator]
        text_features = self.model.encode_text(tokens, normalize=True)  # type: ignore[operator]
        logits: torch.Tensor = self.model.logit_scale.exp() * image_features @ text_features.T  # type: ignore[operator]
        return logits


def _wrap(logits: nn.Module, device: torch.device, workers: WorkerGroup) -> nn.Module:
    if workers.size == 1:
        return logits
    return DistributedDataParallel(logits, device_ids=[device] if device.type == "cuda" else None, static_graph=True)


def _tokens(clip: Clip, data: TaskData, recipe: Recipe) -> torch.Tensor:
    """Tokens of every template that training uses, int64 [templates, C, L]."""
    templates = data.templates[:1] if recipe.train_templates == "first" else data.templates
    return torch.stack([clip.tokenizer(prompts(data.classes, [template])) for template in templates])


def _template_of(seed: int, step: int, num_templates: int) -> int:
    if num_templates == 1:
        return 0
    return int(torch.randint(num_templates, (1,), generator=generator_for(seed, "template", step)))


def _check_finite(loss: float, step: int, task: str, recipe: Recipe) -> None:
    if not math.isfinite(loss):
        raise TrainingDivergedError(
            f"task {task!r}: the loss is {loss} at step {step} of {recipe.steps} (lr {recipe.learning_rate(step):.2e} "
            f"there, peak {recipe.lr:.2e}): train it with a lower lr or more warmup_steps"
        )


@contextmanager
def _kept_in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode: BatchNorm normalises by the base's statistics and leaves them alone. Gradients flow all the same."""
    model.eval()
    try:
        with torch.enable_grad():
            yield
    finally:
        model.zero_grad(set_to_none=True)
