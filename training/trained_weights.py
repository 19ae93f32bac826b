"""The parameters that a method trains, with their optimizer: one update per step, saved to and resumed from a file."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fusion.checkpoints.names import of_images
from fusion.errors import ConfigError, StateDictError
from fusion.tensors import TensorFile
from training.methods import Method
from training.recipe import Recipe
from training.worker_group import WorkerGroup

logger = logging.getLogger(__name__)

_TOKEN_TABLES = ("token_embedding.weight", "word_embeddings.weight")
_MOMENTS = ("exp_avg", "exp_avg_sq")


class TrainedWeights:
    """What training changes in a model that the method has prepared. Freezes every parameter that it does not name.

    A state holds `step` (int64 [1]), `model/NAME` for each resumable tensor of the method, `exp_avg/NAME` and
    `exp_avg_sq/NAME`, AdamW's moments, for each parameter that the steps move, and `average/NAME` for each of these
    once weights are averaged, and `best/NAME` once weights were kept.
    """

    def __init__(self, method: Method, model: nn.Module, recipe: Recipe) -> None:
        for parameter in model.parameters():
            parameter.requires_grad_(False)
            parameter.grad = None
        trained = method.trained_parameters(model)
        self.text_parameters = [parameter for name, parameter in trained.items() if not of_images(name)]
        """Those of the text encoder, which the probe moves, and the steps unless `text_lr` is 0."""
        self._parameters = {name: parameter for name, parameter in trained.items() if recipe.text_lr or of_images(name)}
        if trained and not self._parameters:
            raise ConfigError(
                f"text_lr is 0 and method {recipe.method!r} trains nothing but the text encoder: no step would change "
                "anything"
            )
        for parameter in self._parameters.values():
            parameter.requires_grad_(True)
        self._resumable = method.resumable_tensors(model)
        self._optimizer = _optimizer(self._parameters, recipe)
        self._recipe = recipe
        self._averages: dict[str, torch.Tensor] = {}
        self._best: dict[str, torch.Tensor] = {}

    def clear_gradients(self) -> None:
        """Before a step's gradients are added."""
        self._optimizer.zero_grad(set_to_none=True)

    def update(self, step: int) -> None:
        """The step with this number, from 0, down the gradient that was added."""
        if self._recipe.clip_grad is not None:
            nn.utils.clip_grad_norm_(self._parameters.values(), self._recipe.clip_grad)
        for group in self._optimizer.param_groups:
            group["lr"] = self._recipe.learning_rate(step) * group["multiple"]
        self._optimizer.step()
        self._average(step)

    @contextmanager
    def texts_unfrozen(self) -> Iterator[list[nn.Parameter]]:
        """The text encoder's parameters, with gradients while the block runs, also where the steps leave them alone."""
        moved = {id(parameter) for parameter in self._parameters.values()}
        for parameter in self.text_parameters:
            parameter.requires_grad_(True)
        try:
            yield self.text_parameters
        finally:
            for parameter in self.text_parameters:
                parameter.requires_grad_(id(parameter) in moved)

    def keep(self) -> None:
        """These weights are the best so far: `finish` puts them back."""
        for name, parameter in self._parameters.items():
            self._best[name] = parameter.detach().clone(memory_format=torch.preserve_format)

    def finish(self) -> None:
        """Put the averaged or the best weights in place, where the recipe asks for them."""
        for name, tensor in (self._averages | self._best).items():
            self._parameters[name].detach().copy_(tensor)

    def _average(self, step: int) -> None:
        """Running mean of the weights after each of the last steps."""
        count = step + 1 - self._recipe.averaged_from
        if count < 1:
            return
        for name, parameter in self._parameters.items():
            if count == 1:
                self._averages[name] = parameter.detach().clone(memory_format=torch.preserve_format)
            else:
                self._averages[name].lerp_(parameter.detach(), 1 / count)

    def state(self, step: int) -> dict[str, torch.Tensor]:
        """All that is needed to resume after `step` steps. The tensors are the live ones."""
        tensors = {"step": torch.tensor([step])}
        for name, tensor in self._resumable.items():
            tensors[f"model/{name}"] = tensor.detach()
        for name, parameter in self._parameters.items():
            for moment in _MOMENTS:
                if moment in self._optimizer.state[parameter]:
                    tensors[f"{moment}/{name}"] = self._optimizer.state[parameter][moment]
        tensors |= {f"average/{name}": average for name, average in self._averages.items()}
        tensors |= {f"best/{name}": best for name, best in self._best.items()}
        return tensors

    def resume(self, state: Path | None, workers: WorkerGroup) -> int:
        """Load rank 0's state in every rank and return the number of steps done; 0 where rank 0 has none.

        Raises:
            StateDictError: the state belongs to another model.
        """
        file = TensorFile(state) if state and workers.rank == 0 else None
        step = workers.from_first(int(file.tensor("step")[0]) if file else 0)
        if step == 0:
            return 0
        has_best = bool(workers.from_first(any(name.startswith("best/") for name in file.specs) if file else 0))
        for name, tensor in self._resumable.items():
            _fill(tensor.detach(), file, f"model/{name}", workers)
        for name, parameter in self._parameters.items():
            slots: dict[str, Any] = {"step": torch.tensor(float(step), device=parameter.device)}
            for moment in _MOMENTS:
                slots[moment] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
                _fill(slots[moment], file, f"{moment}/{name}", workers)
            self._optimizer.state[parameter] = slots
            if step > self._recipe.averaged_from:
                self._averages[name] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
                _fill(self._averages[name], file, f"average/{name}", workers)
            if has_best:
                self._best[name] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
                _fill(self._best[name], file, f"best/{name}", workers)
        logger.info("resumed step=%d", step)
        return step


def _optimizer(parameters: dict[str, nn.Parameter], recipe: Recipe) -> torch.optim.AdamW:
    by_settings: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        decayed = parameter.dim() > 1 and not name.endswith(_TOKEN_TABLES)
        multiple = 1.0 if of_images(name) else recipe.text_lr
        by_settings.setdefault((recipe.weight_decay if decayed else 0.0, multiple), []).append(parameter)
    groups = [
        {"params": params, "weight_decay": decay, "multiple": multiple}
        for (decay, multiple), params in by_settings.items()
    ]
    return torch.optim.AdamW(groups, lr=recipe.lr, betas=recipe.betas, eps=recipe.eps, fused=True)


def _fill(tensor: torch.Tensor, file: TensorFile | None, name: str, workers: WorkerGroup) -> None:
    """Overwrite a tensor with rank 0's: the file's, or its own where the file lacks a moment."""
    if file is not None and name in file:
        stored = file.tensor(name)
        if stored.shape != tensor.shape:
            raise StateDictError(f"{file.label}: {name} has shape {list(stored.shape)}, the model {list(tensor.shape)}")
        tensor.copy_(stored)
    elif file is not None and name.startswith("model/"):
        raise StateDictError(f"{file.label} lacks {name}: it is the state of another model")
    workers.copy_from_first(tensor)
