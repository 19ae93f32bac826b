"""Training methods: which tensors of a base are trained, and how they become an expert. One file per method.

To add a method, put a file `NAME.py` into this folder that defines one subclass of `Method`. Nothing else changes:
methods are found by the names of their files, so `Recipe(method="NAME")` is valid from then on. Fine-tuning, resuming,
weight decay and the expert in the store go by what the method names. Settings of a method are fields of `Recipe`.

Importing this package imports neither torch nor any method.
"""

from __future__ import annotations

import importlib
import pkgutil
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

from fusion.errors import ConfigError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from training.recipe import Recipe


class Method(ABC):
    """One way of making an expert. An instance serves one fine-tuning, which calls its methods in this order.

    The model is in eval mode throughout, so dropout is off and BatchNorm uses the base's statistics and leaves them
    alone. Everything that the method does not name keeps the base's values bit for bit.
    """

    trains: ClassVar[bool] = True
    """False for a method without an expert: then nothing below is called, and the evidence alone is published."""
    may_drop: ClassVar[bool] = False
    """Whether the expert is dropped where held-out images show no need of it."""

    def prepare(self, model: nn.Module, recipe: Recipe, generator: torch.Generator) -> None:  # noqa: B027
        """Change the model in place before training, for example insert adapters. By default it stays as it is.

        Args:
            model: the base: an open_clip model, fp32, on the device to train on.
            recipe: all settings.
            generator: for random initial values, on the CPU: the same numbers in every worker and on every attempt.
        """

    @abstractmethod
    def trained_parameters(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """Parameters that the optimizer moves, of the prepared model; all others are frozen.

        Their order decides the order of summation in gradient clipping. Weight decay applies to those with two or more
        dimensions whose name does not end in a token table's.
        """

    def resumable_tensors(self, model: nn.Module) -> dict[str, torch.Tensor]:
        """What training changes: the live tensors of the prepared model to save, and to overwrite in order to resume.

        By default the trained parameters. The optimizer's moments are always saved with them.
        """
        return dict(self.trained_parameters(model))

    def merge(self, model: nn.Module) -> dict[str, torch.Tensor]:
        """Fold what was trained into the base's architecture, in place, and give the expert's full state dict.

        Afterwards the model has the tensor names and shapes that it had before `prepare`, and so has the state dict,
        buffers included, floats in fp32. They may share memory.
        """
        return {
            name: tensor.float() if tensor.is_floating_point() else tensor
            for name, tensor in model.state_dict().items()
        }


def method_names() -> tuple[str, ...]:
    """Names of all methods, sorted. Lists the files of this folder and imports none."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


def open_method(name: str) -> Method:
    """A new instance of the method with this name. Raises `ConfigError` for an unknown one."""
    if name not in method_names():
        raise ConfigError(f"training method {name!r} is unknown: choose from {', '.join(method_names())}")
    module = importlib.import_module(f"{__name__}.{name}")
    own = [value for value in vars(module).values() if getattr(value, "__module__", None) == module.__name__]
    methods = [value for value in own if isinstance(value, type) and issubclass(value, Method)]
    assert len(methods) == 1, f"{module.__name__} has to define one subclass of Method, it defines {len(methods)}"
    method: Method = methods[0]()
    return method
