"""Fine-tune one CLIP on one task: a plain loop without Ray, store or configuration.

A step is a function of seed, step number and weights alone (sampling, augmentation and template are drawn from
seed and step), so a training that goes on from its state after step s ends with the very weights of an undisturbed one.

Cost: weights, gradients and two AdamW moments in fp32, 16 bytes a parameter (2.4 GB for a ViT-B/16), and activations.
Letters: B images of this worker, C classes, L tokens of a text, D embedding dimensions.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from fusion.answers.clip import Clip, prompts
from fusion.errors import ConduError, ConfigError, StateDictError
from fusion.tensors import TensorFile
from training.augment import Augmentation
from training.batches import Pixels, Sampler, channel_statistics, generator_for
from training.data import TaskData
from training.recipe import Recipe
from training.worker_group import World

logger = logging.getLogger(__name__)

_FROZEN = frozenset({"logit_scale", "logit_bias"})
_TOKEN_TABLES = ("token_embedding.weight", "word_embeddings.weight")
_MOMENTS = ("exp_avg", "exp_avg_sq")


class TrainingDivergedError(ConduError):
    """A loss that is not finite."""


@dataclass(frozen=True)
class FinetuneResult:
    """What came of it. `final_loss` is of the last step's batch, `seconds` of this run alone."""

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
    world: World | None = None,
    num_loader_threads: int = 0,
) -> FinetuneResult:
    """Fine-tune `clip` in place; it stays in eval mode, so BatchNorm statistics are the base's ever after.

    Args:
        clip: the base, on the device to train on.
        data: a task with training images.
        recipe: all settings.
        seed: of every random number.
        state: tensors of `on_state` to go on from (rank 0's counts; the others get it from there).
        on_progress: called after every step with the number of steps done and the global batch's loss.
        on_state: called in rank 0 every `recipe.save_every_steps` with the steps done and all that is needed to go on;
            the tensors are the live ones, to be written before it returns.
        world: the workers that share every batch. Their process group has to be there.
        num_loader_threads: threads that decode the next batch while this one trains.
    Raises:
        TrainingDivergedError: the loss became NaN or infinite, in every rank at the same step.
        DataError: an image that can't be decoded.
        StateDictError: `state` does not belong to this model.
    """
    world = world or World()
    if recipe.batch_size < world.size:
        raise ConfigError(
            f"batch_size {recipe.batch_size} is smaller than {world.size} workers: each needs an image a step"
        )
    started = time.monotonic()
    device = clip.device
    augmentation = Augmentation(recipe.augment, recipe.flip, clip.image_size)
    sampler = Sampler(data.train.labels, batch_size=recipe.batch_size, seed=seed, balanced=recipe.balanced)
    labels = torch.from_numpy(data.train.labels)
    mean, std = (statistic.to(device) for statistic in channel_statistics(clip))
    tokens = _tokens(clip, data, recipe).to(device)
    parameters = _trained_parameters(clip.model)
    optimizer = _optimizer(parameters, recipe)
    first_step = _resume(parameters, optimizer, state, world)
    logits_of = _wrap(_Logits(clip.model), device, world)
    mine = slice(world.rank, None, world.size)

    loss = float("nan")
    with (
        _kept_in_eval_mode(clip.model),
        Pixels(clip, data.train, augmentation.canvas, num_threads=num_loader_threads) as pixels,
    ):
        for step in range(first_step, recipe.steps):
            indices = sampler.batch(step)
            drawn = augmentation.draw(recipe.batch_size, generator_for(seed, "augment", step))[mine]
            images = pixels.batch(indices[mine].tolist()).to(device).float() / 255
            if step + 1 < recipe.steps:
                pixels.expect(sampler.batch(step + 1)[mine].tolist())
            images = (augmentation.apply(images, drawn) - mean) / std
            if device.type == "cpu":
                images = images.contiguous(memory_format=torch.channels_last)
            with torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bf16"):
                logits = logits_of(images, tokens[_template_of(seed, step, len(tokens))])
            total = cross_entropy(
                logits.float(),
                labels[indices[mine]].to(device),
                label_smoothing=recipe.label_smoothing,
                reduction="sum",
            )
            loss = world.sum(float(total.detach())) / recipe.batch_size
            rate = recipe.learning_rate(step)
            if not math.isfinite(loss):
                raise TrainingDivergedError(
                    f"task {data.name!r}: the loss is {loss} at step {step} of {recipe.steps} (lr {rate:.2e} there, "
                    f"peak {recipe.lr:.2e}): train it with a lower lr or more warmup_steps"
                )
            optimizer.zero_grad(set_to_none=True)
            (total * (world.size / recipe.batch_size)).backward()  # DDP divides by the number of workers
            if recipe.clip_grad is not None:
                nn.utils.clip_grad_norm_(parameters.values(), recipe.clip_grad)
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            if on_progress:
                on_progress(step + 1, loss)
            if on_state and world.rank == 0 and (step + 1) % recipe.save_every_steps == 0 and step + 1 < recipe.steps:
                on_state(step + 1, _state(parameters, optimizer, step + 1))
    return FinetuneResult(loss, recipe.steps, time.monotonic() - started)


class _Logits(nn.Module):
    """Images and the classes' texts to logits, in one forward call, which is what DDP hooks into."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """[B, 3, H, W] and [C, L] to the frozen scale x cosine, [B, C]."""
        image_features = self.model.encode_image(images, normalize=True)  # type: ignore[operator]
        text_features = self.model.encode_text(tokens, normalize=True)  # type: ignore[operator]
        logits: torch.Tensor = self.model.logit_scale.exp() * image_features @ text_features.T  # type: ignore[operator]
        return logits


def _wrap(logits: nn.Module, device: torch.device, world: World) -> nn.Module:
    if world.size == 1:
        return logits
    return DistributedDataParallel(logits, device_ids=[device] if device.type == "cuda" else None, static_graph=True)


def _trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Both encoders; the logit scale is frozen."""
    trained = {}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.rsplit(".", 1)[-1] not in _FROZEN)
        parameter.grad = None
        if parameter.requires_grad:
            trained[name] = parameter
    return trained


def _optimizer(parameters: dict[str, nn.Parameter], recipe: Recipe) -> torch.optim.AdamW:
    decayed: list[nn.Parameter] = []
    kept: list[nn.Parameter] = []
    for name, parameter in parameters.items():
        (decayed if parameter.dim() > 1 and not name.endswith(_TOKEN_TABLES) else kept).append(parameter)
    groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": kept, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=recipe.lr, betas=recipe.betas, eps=recipe.eps, fused=True)


def _tokens(clip: Clip, data: TaskData, recipe: Recipe) -> torch.Tensor:
    """Tokens of every template that training uses, int64 [templates, C, L]."""
    templates = data.templates[:1] if recipe.templates == "first" else data.templates
    return torch.stack([clip.tokenizer(prompts(data.classes, [template])) for template in templates])


def _template_of(seed: int, step: int, num_templates: int) -> int:
    if num_templates == 1:
        return 0
    return int(torch.randint(num_templates, (1,), generator=generator_for(seed, "template", step)))


@contextmanager
def _kept_in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode: BatchNorm normalises by the base's statistics and does not move them. Gradients flow all the same."""
    model.eval()
    try:
        with torch.enable_grad():
            yield
    finally:
        model.zero_grad(set_to_none=True)


def _state(parameters: dict[str, nn.Parameter], optimizer: torch.optim.AdamW, step: int) -> dict[str, torch.Tensor]:
    tensors = {"step": torch.tensor([step])}
    for name, parameter in parameters.items():
        tensors[f"model/{name}"] = parameter.detach()
        for moment in _MOMENTS:
            if moment in optimizer.state[parameter]:
                tensors[f"{moment}/{name}"] = optimizer.state[parameter][moment]
    return tensors


def _resume(parameters: dict[str, nn.Parameter], optimizer: torch.optim.AdamW, state: Path | None, world: World) -> int:
    """Load weights and moments; the number of steps done. All ranks get rank 0's."""
    file = TensorFile(state) if state and world.rank == 0 else None
    step = world.from_first(int(file.tensor("step")[0]) if file else 0)
    if step == 0:
        return 0
    for name, parameter in parameters.items():
        _fill(parameter.data, file, f"model/{name}", world)
        slots: dict[str, Any] = {"step": torch.tensor(float(step), device=parameter.device)}
        for moment in _MOMENTS:
            slots[moment] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
            _fill(slots[moment], file, f"{moment}/{name}", world)
        optimizer.state[parameter] = slots
    logger.info("resumed step=%d", step)
    return step


def _fill(tensor: torch.Tensor, file: TensorFile | None, name: str, world: World) -> None:
    if file is not None and name in file:
        stored = file.tensor(name)
        if stored.shape != tensor.shape:
            raise StateDictError(f"{file.label}: {name} has shape {list(stored.shape)}, the model {list(tensor.shape)}")
        tensor.copy_(stored)
    elif file is not None and name.startswith("model/"):
        raise StateDictError(f"{file.label} lacks {name}: it is the state of another model")
    world.copy_from_first(tensor)
