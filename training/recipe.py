"""A recipe: every setting that decides what a fine-tuning makes. The defaults are the paper's, for a ViT-B/16."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Interval

from fusion.options import Options
from training.methods import method_names

Policy = Literal["none", "crop", "draw"]
"""See `training.augment`."""

_ALGORITHM = 1
"""Goes up when the same settings train another expert, so that old experts are not taken for new ones."""

_NOT_IN_IDENTITY = {"gradient_checkpointing", "save_every_seconds", "save_every_steps"}


@dataclass(frozen=True)
class Recipe(Options):
    """How a task is fine-tuned. Raises `ConfigError` for values out of range, all of them at once.

    A default never changes, and an option added later has the default that means "as before": an expert's identity
    leaves out what is at its default.
    """

    steps: Annotated[int, Ge(1)] = 1000
    """Optimizer steps."""
    batch_size: Annotated[int, Ge(1)] = 64
    """Images per step, over all workers of a lane together."""
    lr: Annotated[float, Gt(0)] = 1e-5
    """Peak learning rate: reached after a linear warm-up, then a cosine to 0."""
    warmup_steps: Annotated[int, Ge(0)] = 100
    """Steps of the warm-up. Must be below `steps`."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of AdamW's two moments."""
    eps: Annotated[float, Gt(0)] = 1e-8
    """Added to AdamW's denominator."""
    weight_decay: Annotated[float, Ge(0)] = 0.0
    """On matrices only: never on vectors, nor on the token table, whose unused rows must stay the base's."""
    label_smoothing: Annotated[float, Interval(ge=0, lt=1)] = 0.2
    """Of the cross-entropy loss."""
    clip_grad: Annotated[float, Gt(0)] | None = None
    """Largest norm of the gradient. Null: not clipped."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """`fp32`, or `bf16`: the forward pass under autocast; weights and optimizer stay fp32. Pays where the hardware
    multiplies bf16: GPUs since Ampere, CPUs with AMX or AVX512-BF16."""
    gradient_accumulation: Annotated[int, Ge(1)] = 1
    """Parts of a worker's share of the batch that go through the model one after the other. The same gradient up to
    rounding, with the activations of one part."""
    gradient_checkpointing: bool = False
    """Compute activations of transformer blocks again in the backward pass instead of keeping them. Does not change the
    result."""
    augment: Policy = "crop"
    """`none`, `crop` (90-100 % of the area) or `draw` (for drawings and glyphs on white)."""
    flip: bool = True
    """Mirror half of the images. Wrong for digits, letters and whatever else has a reading direction."""
    method: str = "full"
    """What is trained. `full`: both encoders, with the logit scale frozen. `lora`: a change of low rank of their
    matrices. `head`: nothing; the frozen base and the task's evidence answer it. `auto`: `full`, unless held-out images
    show that `head` does as well."""
    lora_rank: Annotated[int, Ge(1)] = 16
    """For `lora`: the rank of every matrix's change. Takes a larger `lr` than `full`, such as 1e-3."""
    lora_alpha: Annotated[float, Gt(0)] | None = None
    """For `lora`: the change is multiplied by lora_alpha / lora_rank. Null: by 1."""
    lora_targets: Literal["mlp", "all"] = "mlp"
    """For `lora`: which matrices change. `mlp`: the feed-forward layers of transformers, as the paper has it. `all`:
    every linear layer, attention projection and convolution that is not depthwise."""
    probe_steps: Annotated[int, Ge(0)] = 0
    """Steps of the text encoder alone, before all others, that bring the classes' texts to where the discriminant of
    the base's image features has them (`training.probe`). 0: fine-tuning starts from the base."""
    probe_lr: Annotated[float, Gt(0)] = 1e-3
    """Peak learning rate of these steps."""
    text_lr: Annotated[float, Ge(0)] = 1.0
    """Learning rate of the text encoder, as a multiple of `lr`. 0: frozen, which makes steps cheaper; without
    `probe_steps` the image encoder alone is trained."""
    average: Annotated[float, Interval(ge=0, lt=1)] = 0.0
    """Share of the steps, the last ones, whose weights are averaged. 0: the last step's weights count."""
    held_out: Annotated[float, Interval(ge=0, lt=1)] = 0.0
    """Share of the steps, the first ones, during which a fifth of the images is held out, to calibrate the expert and
    to tell whether it is needed. 0: never, and neither is known."""
    early_stop: Annotated[int, Ge(1)] | None = None
    """Evaluations in a row without a better one, after which training stops; the best one's weights count. Evaluated
    on the data's validation split, or on a fifth of the training images, which no step then sees. Null: all `steps` are
    trained, and the last one's weights count."""
    validate_every_steps: Annotated[int, Ge(1)] = 50
    """For `early_stop`: steps between evaluations."""
    few_shot: Annotated[int, Ge(1)] | None = None
    """Training images kept per class. Null: all."""
    train_templates: Literal["first", "all"] = "first"
    """Train on the `first` template, or on a random one of `all` per step. Evaluation always takes the ensemble."""
    balanced: bool = False
    """Draw classes evenly, whatever their number of images. Otherwise every image is drawn once per epoch."""
    save_every_seconds: Annotated[float, Ge(0)] = 120.0
    """Seconds between resumable states, which are written beside the steps. None is saved near a task's end, where it
    would cost more than it can spare. Does not change the result."""
    save_every_steps: Annotated[int, Ge(1)] | None = None
    """Steps between resumable states, in place of `save_every_seconds`. Does not change the result."""

    def contradictions(self) -> list[str]:
        problems = super().contradictions()
        if 0 < self.steps <= self.warmup_steps:
            problems.append(f"warmup_steps is {self.warmup_steps}, it must be below steps, which is {self.steps}")
        if self.early_stop is not None:
            problems += self._against_early_stop()
        if self.gradient_accumulation > self.batch_size:
            problems.append(
                f"gradient_accumulation is {self.gradient_accumulation} and batch_size {self.batch_size}: each part "
                "needs an image"
            )
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            problems.append(f"betas is {self.betas}, it must be two numbers in [0, 1)")
        if self.method == "auto" and not self.held_out:
            problems.append("method is 'auto', which decides on held-out images: set held_out, such as 0.67")
        if self.method not in method_names():
            problems.append(f"method is {self.method!r}, it must be {' or '.join(map(repr, method_names()))}")
        return problems

    def _against_early_stop(self) -> list[str]:
        problems = []
        if self.held_out:
            problems.append(
                f"early_stop is {self.early_stop} and held_out {self.held_out}: one holds out images to the end, the "
                "other for a while. Leave one out"
            )
        if self.average:
            problems.append(
                f"early_stop is {self.early_stop} and average {self.average}: weights are those of the best step, or a "
                "mean over the last ones. Leave one out"
            )
        if self.validate_every_steps >= self.steps:
            problems.append(
                f"validate_every_steps is {self.validate_every_steps}, it must be below steps, which is {self.steps}: "
                "early_stop could never stop"
            )
        return problems

    def learning_rate(self, step: int) -> float:
        """Of the step with this number, from 0: linear warm-up, then cosine to 0."""
        if step < self.warmup_steps:
            return self.lr * (step + 1) / self.warmup_steps
        done = (step - self.warmup_steps) / (self.steps - self.warmup_steps)
        return self.lr * 0.5 * (1 + math.cos(math.pi * done))

    @property
    def held_out_steps(self) -> int:
        """Steps during which images are held out."""
        return min(round(self.held_out * self.steps), self.steps - 1)

    @property
    def averaged_from(self) -> int:
        """The step, from 0, after which weights are averaged; `steps` where they are not."""
        return self.steps - round(self.average * self.steps)

    def to_json(self) -> dict[str, Any]:
        """The recipe's part in an expert's identity: what changes the result, where it differs from its default."""
        values = {field.name: (getattr(self, field.name), field.default) for field in fields(self)}
        changed = {name: _plain(value) for name, (value, default) in values.items() if _plain(value) != _plain(default)}
        return {**{k: v for k, v in changed.items() if k not in _NOT_IN_IDENTITY}, "algorithm": _ALGORITHM}


def _plain(value: Any) -> Any:
    """As JSON has it."""
    return list(value) if isinstance(value, tuple) else value
