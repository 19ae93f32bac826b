"""The loss of a step and its gradient: images against the prompts of their task's classes, under the recipe's template.

    L = 1/B sum_i CE(s cos(f(x_i), g(t)), y_i)          f, g: the encoders of images and texts; s: the logit scale

CLIP's pre-training compares every image with every other one's text, so its loss is one of the whole batch. Here an
image is compared with the classes' prompts and with no other image: the loss of a batch is the mean over its parts, and
so is its gradient. A batch in parts (`gradient_accumulation`) therefore gives what the whole batch gives, up to the
order of summation.

Letters: B images of the global batch, b images of this worker or of a part, C classes, L tokens of a text, D dimensions
of the embedding.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from fusion.answers.clip import Clip
from training.data.task_data import TaskData
from training.probe import prompt_tokens
from training.recipe import Recipe
from training.samplers import generator_for
from training.worker_group import WorkerGroup


class Objective:
    """The loss of one training. Make it once the trained parameters are the ones with gradients."""

    def __init__(self, clip: Clip, data: TaskData, recipe: Recipe, seed: int, workers: WorkerGroup) -> None:
        templates = data.templates[:1] if recipe.train_templates == "first" else data.templates
        self._tokens = prompt_tokens(clip.tokenizer, data.classes, templates).to(clip.device)
        self._model = clip.model
        self._texts = None
        if not recipe.text_lr:  # frozen: encoded once
            with torch.no_grad():
                self._texts = [clip.model.encode_text(tokens, normalize=True) for tokens in self._tokens]  # type: ignore[operator]
        self._logits: nn.Module = _Logits(clip.model)
        if recipe.gradient_accumulation == 1:
            self._logits = _shared(self._logits, clip.device, workers)
        self._recipe = recipe
        self._seed = seed
        self._workers = workers

    def add_gradients(self, step: int, images: torch.Tensor, labels: torch.Tensor) -> float:
        """Add the gradient of the global batch's mean loss to the parameters' own, in every rank.

        Args:
            images, labels: this worker's share of the batch, float32 [b, 3, H, W] and int64 [b].
        Returns: the sum of the share's losses.
        """
        template = _template_of(self._seed, step, len(self._tokens))
        if self._recipe.gradient_accumulation > 1:
            return self._add_in_parts(template, images, labels)
        if self._texts:
            total = self._loss(images, labels, texts=self._texts[template])
        else:
            total = self._loss(images, labels, tokens=self._tokens[template])
        share = self._workers.size / self._recipe.batch_size  # DDP divides by the number of workers
        (total * share).backward()  # type: ignore[no-untyped-call]
        return float(total.detach())

    def _add_in_parts(self, template: int, images: torch.Tensor, labels: torch.Tensor) -> float:
        """The same with the activations of one part at a time. The texts, which all parts share, are encoded once."""
        num_parts = self._recipe.gradient_accumulation
        texts = self._texts[template] if self._texts else self._encoded(template)
        shared = texts.detach().float().requires_grad_(texts.requires_grad)
        totals = []
        for part, wanted in zip(images.tensor_split(num_parts), labels.tensor_split(num_parts), strict=True):
            total = self._loss(part, wanted, texts=shared)
            (total / self._recipe.batch_size).backward()  # type: ignore[no-untyped-call]
            totals.append(total.detach())
        if shared.grad is not None:
            texts.backward(shared.grad.to(texts.dtype))  # type: ignore[no-untyped-call]
        self._workers.add_up([one.grad for one in self._model.parameters() if one.grad is not None])
        return float(torch.stack(totals).sum())

    def _encoded(self, template: int) -> torch.Tensor:
        """Unit features of the classes' texts, [C, D], with gradients."""
        with self._autocast():
            texts: torch.Tensor = self._model.encode_text(self._tokens[template], normalize=True)  # type: ignore[operator]
        return texts

    def _loss(self, images: torch.Tensor, labels: torch.Tensor, **texts: torch.Tensor) -> torch.Tensor:
        """Sum over images [b, 3, H, W] and labels [b], a scalar with gradients."""
        with self._autocast():
            logits = self._logits(images, **texts)
        return cross_entropy(logits.float(), labels, label_smoothing=self._recipe.label_smoothing, reduction="sum")

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self._tokens.device.type, torch.bfloat16, enabled=self._recipe.precision == "bf16")


class _Logits(nn.Module):
    """Images and the classes' texts to logits, in one forward call, which is what DDP hooks into."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, images: torch.Tensor, *, tokens: torch.Tensor | None = None, texts: torch.Tensor | None = None
    ) -> torch.Tensor:
        """[b, 3, H, W] and [C, L], or unit text features [C, D], to the model's scale x cosine, [b, C]."""
        image_features = self.model.encode_image(images, normalize=True)  # type: ignore[operator]
        if texts is None:
            texts = self.model.encode_text(tokens, normalize=True)  # type: ignore[operator]
        logits: torch.Tensor = self.model.logit_scale.exp() * image_features @ texts.T  # type: ignore[operator]
        return logits


def _shared(logits: nn.Module, device: torch.device, workers: WorkerGroup) -> nn.Module:
    if workers.size == 1:
        return logits
    return DistributedDataParallel(logits, device_ids=[device] if device.type == "cuda" else None, static_graph=True)


def _template_of(seed: int, step: int, num_templates: int) -> int:
    if num_templates == 1:
        return 0
    return int(torch.randint(num_templates, (1,), generator=generator_for(seed, "template", step)))
