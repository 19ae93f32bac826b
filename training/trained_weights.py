"""The parameters that a method trains, with their optimizer: one update per step, saved to and resumed from a file."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fusion.errors import StateDictError
from fusion.tensors import TensorFile
from training.methods import Method
from training.recipe import Recipe
from training.worker_group import WorkerGroup

logger = logging.getLogger(__name__)

_TOKEN_TABLES = ("token_embedding.weight", "word_embeddings.weight")
_MOMENTS = ("exp_avg", "exp_avg_sq")


class TrainedWeights:
    """What training changes in a model that the method has prepared. Freezes every parameter that it does not name.

    A state holds `step` (int64 [1]), `model/NAME` for each resumable tensor of the method, and `exp_avg/NAME` and
    `exp_avg_sq/NAME`, AdamW's moments, for each trained parameter.
    """

    def __init__(self, method: Method, model: nn.Module, recipe: Recipe) -> None:
        for parameter in model.parameters():
            parameter.requires_grad_(False)
            parameter.grad = None
        self._parameters = method.trained_parameters(model)
        for parameter in self._parameters.values():
            parameter.requires_grad_(True)
        self._resumable = method.resumable_tensors(model)
        self._optimizer = _optimizer(self._parameters, recipe)
        self._clip_grad = recipe.clip_grad

    def update(self, loss: torch.Tensor, rate: float) -> None:
        """One step down the gradient of a scalar loss, at this learning rate."""
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self._clip_grad is not None:
            nn.utils.clip_grad_norm_(self._parameters.values(), self._clip_grad)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.step()

    def state(self, step: int) -> dict[str, torch.Tensor]:
        """All that is needed to resume after `step` steps. The tensors are the live ones."""
        tensors = {"step": torch.tensor([step])}
        for name, tensor in self._resumable.items():
            tensors[f"model/{name}"] = tensor.detach()
        for name, parameter in self._parameters.items():
            for moment in _MOMENTS:
                if moment in self._optimizer.state[parameter]:
                    tensors[f"{moment}/{name}"] = self._optimizer.state[parameter][moment]
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
        for name, tensor in self._resumable.items():
            _fill(tensor.detach(), file, f"model/{name}", workers)
        for name, parameter in self._parameters.items():
            slots: dict[str, Any] = {"step": torch.tensor(float(step), device=parameter.device)}
            for moment in _MOMENTS:
                slots[moment] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
                _fill(slots[moment], file, f"{moment}/{name}", workers)
            self._optimizer.state[parameter] = slots
        logger.info("resumed step=%d", step)
        return step


def _optimizer(parameters: dict[str, nn.Parameter], recipe: Recipe) -> torch.optim.AdamW:
    decayed: list[nn.Parameter] = []
    undecayed: list[nn.Parameter] = []
    for name, parameter in parameters.items():
        (decayed if parameter.dim() > 1 and not name.endswith(_TOKEN_TABLES) else undecayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": undecayed, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
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
