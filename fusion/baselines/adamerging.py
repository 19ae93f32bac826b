"""Layer-wise AdaMerging: one model whose coefficients are learned without labels (Yang et al., ICLR 2024).

theta = theta_0 + sum over tasks of c_i,n * delta_i,n, with one coefficient per task i and tensor n. All coefficients
start at 0.3, and Adam minimises the mean entropy of the model's answers to unlabelled images of each task, summed over
tasks. The paper uses the test images, 500 steps and a learning rate of 0.001, and keeps text features fixed. Here the
default is fewer steps at a higher rate, the caller chooses the images, and texts go through the merged text encoder,
because condu's experts train both encoders.

The gradient of a coefficient is the inner product of delta_i,n with the loss's gradient at theta_n. So a step streams
the task vectors from their files twice, and memory holds the model, one gradient of it, and the batch of one task,
however many tasks there are.

Letters: B images of a step, C classes, L tokens of a text, K tasks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch.func import functional_call

from fusion.answers.clip import LOGIT_SCALE, Clip
from fusion.baselines import Experts, OneModel, task_vectors
from fusion.baselines.shelf import Shelf
from fusion.errors import ConfigError
from fusion.tensors import TensorFile


@dataclass(frozen=True)
class Unlabelled:
    """A task's input to AdaMerging.

    Attributes:
        pixels: preprocessed images, in an order that mixes classes, float32 [N, 3, H, W]; without labels.
        prompts: one text per class.
    """

    pixels: torch.Tensor
    prompts: tuple[str, ...]


class AdaMerging(OneModel):
    """Learns its coefficients in `fuse`, and keeps only the merged model.

    Args:
        clip: a model of the base's architecture, on the device to learn on; it is not changed.
        images: images of every task, by its name.
        num_steps, batch_size, lr: settings of the learning; each step uses `batch_size` images of every task.
        start: initial value of the coefficients.

    Attributes:
        coefficients: tensor names to float32 [K], after `fuse`.
        entropies: mean entropy over tasks before each step, in nats.
    """

    name: ClassVar[str] = "adamerging"

    def __init__(
        self,
        clip: Clip,
        images: Mapping[str, Unlabelled],
        *,
        num_steps: int = 30,
        batch_size: int = 16,
        lr: float = 0.01,
        start: float = 0.3,
    ) -> None:
        self._clip = clip
        self._images = images
        self._num_steps = num_steps
        self._batch_size = batch_size
        self._lr = lr
        self._start = start
        self.coefficients: dict[str, np.ndarray] = {}
        self.entropies: list[float] = []

    @property
    def title(self) -> str:
        return f"AdaMerging, {self._num_steps} steps"

    def fuse(self, base: TensorFile, experts: Experts, shelf: Shelf) -> None:
        if missing := [task for task in experts if task not in self._images or not len(self._images[task].pixels)]:
            raise ConfigError(f"adamerging: there are no unlabelled images of {', '.join(missing)}")
        names = base.fused_names()
        tokens = {task: self._clip.tokenizer(list(self._images[task].prompts)) for task in experts}
        coefficients = torch.full((len(names), len(experts)), self._start, requires_grad=True)
        optimizer = torch.optim.Adam([coefficients], lr=self._lr)
        self.entropies = []
        for step in range(self._num_steps):
            merged = {
                name: self._merged(base, experts, name, coefficients.detach()[n]).requires_grad_()
                for n, name in enumerate(names)
            }
            entropies = [self._add_gradients(merged, task, tokens[task], step) for task in experts]
            self.entropies.append(sum(entropies) / len(entropies))
            coefficients.grad = torch.stack([_inner_products(base, experts, name, merged[name].grad) for name in names])
            optimizer.step()
        learned = coefficients.detach()
        self.coefficients = {name: learned[n].numpy() for n, name in enumerate(names)}
        for n, name in enumerate(names):
            shelf.put(f"model/{name}", self._merged(base, experts, name, learned[n]).reshape(-1).cpu())

    def _merged(self, base: TensorFile, experts: Experts, name: str, coefficients_K: torch.Tensor) -> torch.Tensor:
        """One tensor of theta, in its own shape; a new tensor on the model's device."""
        weights_N = base.float32(name).reshape(-1).copy()
        for coefficient, delta_N in zip(coefficients_K.tolist(), task_vectors(base, experts, name), strict=True):
            weights_N += np.float32(coefficient) * delta_N
        return torch.from_numpy(weights_N).reshape(base.specs[name].shape).to(self._clip.device)

    def _add_gradients(self, merged: Mapping[str, torch.Tensor], task: str, tokens: torch.Tensor, step: int) -> float:
        """Add the gradients of one task's batch to those of `merged`. Returns the batch's mean entropy, in nats."""
        pixels = self._images[task].pixels
        places = torch.arange(step * self._batch_size, (step + 1) * self._batch_size) % len(pixels)
        batch = pixels[places].to(self._clip.device, memory_format=torch.channels_last)
        image_BD, text_CD = functional_call(self._clip.model, dict(merged), (batch, tokens.to(self._clip.device)))[:2]
        log_share_BC = torch.log_softmax(LOGIT_SCALE * image_BD @ text_CD.T, dim=-1)
        entropy = -(log_share_BC.exp() * log_share_BC).sum(-1).mean()
        entropy.backward()
        return float(entropy.detach())


def _inner_products(base: TensorFile, experts: Experts, name: str, gradient: torch.Tensor | None) -> torch.Tensor:
    """The gradients of one tensor's coefficients, float32 [K]; 0 if the answers do not depend on the tensor."""
    if gradient is None:
        return torch.zeros(len(experts))
    gradient_N = gradient.reshape(-1).cpu().numpy()
    return torch.tensor([float(gradient_N @ delta_N) for delta_N in task_vectors(base, experts, name)])
