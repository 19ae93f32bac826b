"""A recipe: every setting that decides what a fine-tuning makes. The defaults are the paper's, for a ViT-B/16."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from fusion.errors import ConfigError
from training.augment import Policy
from training.methods import method_names

Precision = Literal["fp32", "bf16"]
Templates = Literal["first", "all"]

_ALGORITHM = 1
"""Raised when the loop changes what it makes of the same settings, so that old experts are not taken for new ones."""


@dataclass(frozen=True)
class Recipe:
    """How a task is fine-tuned. Raises `ConfigError` for values out of range, all of them at once."""

    steps: int = 1000
    batch_size: int = 64
    """Images a step, over all workers together."""
    lr: float = 1e-5
    """Peak learning rate: reached after the warm-up, then a cosine to 0."""
    warmup_steps: int = 100
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    """On matrices only: never on vectors, nor on the token table, whose unused rows have to stay the base's."""
    label_smoothing: float = 0.2
    clip_grad: float | None = None
    """Largest norm of the gradient; None: not clipped."""
    precision: Precision = "fp32"
    """`bf16` runs the forward pass under autocast; weights and optimizer stay fp32."""
    augment: Policy = "crop"
    flip: bool = True
    """Mirror half of the images. Wrong for digits, letters and whatever else has a reading direction."""
    method: str = "full"
    """What is trained, and how: a file of `training/methods`."""
    few_shot: int | None = None
    """Training images a class; None: all."""
    templates: Templates = "first"
    """Train on the first template, or on a random one a step. Evaluation always takes the ensemble."""
    balanced: bool = False
    """Draw classes evenly, whatever their number of images; else every image comes once an epoch."""
    save_every_steps: int = 200
    """Steps between resumable states. Does not change the result."""

    def __post_init__(self) -> None:
        problems = []
        for name in ("steps", "batch_size", "save_every_steps"):
            if getattr(self, name) < 1:
                problems.append(f"{name} is {getattr(self, name)}, it has to be at least 1")
        for name in ("weight_decay", "warmup_steps"):
            if getattr(self, name) < 0:
                problems.append(f"{name} is {getattr(self, name)}, it can't be negative")
        for name in ("lr", "eps", "clip_grad", "few_shot"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                problems.append(f"{name} is {value}, it has to be above 0")
        if 0 < self.steps <= self.warmup_steps:
            problems.append(f"warmup_steps is {self.warmup_steps}, it has to be below steps, which is {self.steps}")
        if not 0 <= self.label_smoothing < 1:
            problems.append(f"label_smoothing is {self.label_smoothing}, it has to be in [0, 1)")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            problems.append(f"betas are {self.betas}, they have to be two numbers in [0, 1)")
        choices = {"precision": get_args(Precision), "augment": get_args(Policy), "templates": get_args(Templates)}
        for name, choice in {**choices, "method": method_names()}.items():
            if getattr(self, name) not in choice:
                problems.append(f"{name} is {getattr(self, name)!r}, it can be {', '.join(map(repr, choice))}")
        if problems:
            raise ConfigError("recipe: " + "; ".join(problems))

    def learning_rate(self, step: int) -> float:
        """Of the step with this number, from 0: linear warm-up, then cosine to 0."""
        if step < self.warmup_steps:
            return self.lr * (step + 1) / self.warmup_steps
        done = (step - self.warmup_steps) / (self.steps - self.warmup_steps)
        return self.lr * 0.5 * (1 + math.cos(math.pi * done))

    def to_json(self) -> dict[str, Any]:
        """Exactly what changes the result: the recipe's part in an expert's identity."""
        values = asdict(self)
        del values["save_every_steps"]
        return {**values, "betas": list(self.betas), "algorithm": _ALGORITHM}
