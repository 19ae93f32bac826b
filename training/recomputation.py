"""Activations that are computed again instead of kept: gradient checkpointing (Chen et al. 2016, arXiv 1604.06174).

Only the input of each transformer block is kept; the backward pass runs the block's forward again. A step costs one
more forward pass, and the gradients are the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from fusion.checkpoints.names import of_images
from fusion.errors import ConfigError


@contextmanager
def recomputed_activations(model: nn.Module, *, enabled: bool) -> Iterator[None]:
    """While the block runs, an open_clip model keeps the inputs of its blocks alone.

    Raises `ConfigError` for an image encoder that can't do it: open_clip's own ResNets.
    """
    if not enabled:
        yield
        return
    switch = getattr(model, "set_grad_checkpointing")  # noqa: B009  # a module's attributes have no type
    switch(True)
    try:
        if not any(getattr(module, "grad_checkpointing", False) for module in _of_images(model)):
            raise ConfigError(
                "gradient_checkpointing has no effect on this base's image encoder, which is no transformer and has no "
                "blocks to compute again: leave it out, and take gradient_accumulation or a smaller batch_size"
            )
        yield
    finally:
        switch(False)


def _of_images(model: nn.Module) -> list[nn.Module]:
    return [module for name, module in model.named_modules() if of_images(f"{name}.")]
