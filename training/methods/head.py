"""No fine-tuning: the frozen base and the task's evidence answer it. A few kilobytes, and no forward but the base's."""

from __future__ import annotations

from torch import nn

from training.methods import Method


class Head(Method):
    """Trains nothing."""

    trains = False

    def trained_parameters(self, model: nn.Module) -> dict[str, nn.Parameter]:
        return {}
