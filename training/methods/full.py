"""Full fine-tuning: every parameter of both encoders is trained; the logit scale (and bias) keeps the base's value."""

from __future__ import annotations

from torch import nn

from training.methods import Method

_FROZEN = frozenset({"logit_scale", "logit_bias"})


class Full(Method):
    """Trains everything except the logit scale and bias."""

    def trained_parameters(self, model: nn.Module) -> dict[str, nn.Parameter]:
        return {
            name: parameter for name, parameter in model.named_parameters() if name.rsplit(".", 1)[-1] not in _FROZEN
        }
