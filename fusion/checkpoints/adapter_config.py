"""What an adapter's `adapter_config.json` says of how it is merged. What can't be merged exactly is refused by name.

A setting that is not known here may change what an adapter means, so it is refused unless it is switched off.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusion.errors import StateDictError

ELSEWHERE = "Merge it with PEFT (merge_and_unload), save the model as safetensors, and give that file"
"""What to do with an adapter that is refused."""
_REFUSED = {
    "use_dora": "DoRA, which also scales every row of the merged matrix",
    "use_qalora": "QALoRA, whose inputs are pooled",
    "use_bdlora": "block-diagonal LoRA",
    "lora_bias": "a bias of its own beside each product",
    "layer_replication": "layers that are repeated",
    "trainable_token_indices": "rows of the token table that are trained apart",
    "target_parameters": "factors of bare parameters",
    "alora_invocation_tokens": "aLoRA, which acts on some tokens only",
    "megatron_config": "layers of Megatron",
    "arrow_config": "Arrow, which mixes several adapters",
    "kasa_config": "KaSA",
    "velora_config": "VeLoRA",
    "monteclora_config": "MonteCLoRA",
}
"""Settings that make an adapter another thing than W + scale x B A, and what they stand for."""
_MERGED = {"peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "fan_in_fan_out"}
_NO_MATTER = frozenset(
    {"task_type", "inference_mode", "base_model_name_or_path", "revision", "auto_mapping", "peft_version", "bias"}
    | {"target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save", "lora_dropout"}
    | {"loftq_config", "eva_config", "corda_config", "lora_ga_config", "qalora_group_size", "megatron_core"}
    | {"runtime_config", "ensure_weight_tying", "init_lora_weights"}
)
"""Settings of the training, or of which tensors the file then holds: the file itself shows those."""
_KEEPS_THE_BASE = (True, False, None, "gaussian", "eva", "orthogonal")
"""Ways to initialise the factors that leave the base's own weights alone."""


@dataclass(frozen=True)
class AdapterConfig:
    """How a LoRA adapter is merged: W + scale x B A, with alpha / r, or alpha / sqrt(r) where `rslora`, for scale.

    Attributes:
        label: the file, for messages.
        rank, alpha: where no pattern matches.
        ranks, alphas: by a regular expression that has to match the end of a module's path.
        fan_in_fan_out: the adapted matrices are [in, out], so that the product is transposed.
    """

    label: str
    rank: int
    alpha: float
    rslora: bool
    ranks: Mapping[str, int]
    alphas: Mapping[str, float]
    fan_in_fan_out: bool

    def rank_of(self, module: str) -> int:
        return int(_matching(self.ranks, module, self.rank))

    def scale_of(self, module: str) -> float:
        """What the product of a module's factors is multiplied by."""
        rank, alpha = self.rank_of(module), float(_matching(self.alphas, module, self.alpha))
        return alpha / (math.sqrt(rank) if self.rslora else rank)


def read_adapter_config(path: Path) -> AdapterConfig:
    """Raises `StateDictError`: not a LoRA adapter's configuration, or one that can't be merged exactly."""
    try:
        found: Any = json.loads(path.read_text())
        kind = found["peft_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StateDictError(f"{path} is not the configuration of a PEFT adapter ({error!r})") from error
    if kind != "LORA":
        raise StateDictError(f"{path}: a {kind} adapter can't be merged by condu, only LORA. {ELSEWHERE}")
    if refused := [name for name in found if found[name] and name not in _MERGED | _NO_MATTER]:
        said = [f"{name} ({_REFUSED.get(name, 'a setting that condu does not know')})" for name in refused]
        raise StateDictError(f"{path}: can't be merged exactly: it has {', '.join(said)}. {ELSEWHERE}")
    if (way := found.get("init_lora_weights", True)) not in _KEEPS_THE_BASE:
        raise StateDictError(
            f"{path}: init_lora_weights is {way!r}, which changes the base's own weights as well: the adapter alone "
            f"does not say how. {ELSEWHERE}"
        )
    try:
        config = AdapterConfig(
            str(path),
            int(found.get("r", 8)),
            float(found.get("lora_alpha", 8)),
            bool(found.get("use_rslora", False)),
            {str(key): int(value) for key, value in (found.get("rank_pattern") or {}).items()},
            {str(key): float(value) for key, value in (found.get("alpha_pattern") or {}).items()},
            bool(found.get("fan_in_fan_out", False)),
        )
        for pattern in (*config.ranks, *config.alphas):
            re.compile(pattern)
    except (TypeError, ValueError, AttributeError, re.error) as error:
        raise StateDictError(f"{path}: r, lora_alpha or a pattern is not what PEFT writes ({error})") from error
    return config


def _matching(patterns: Mapping[str, float], module: str, default: float) -> float:
    """The value of the first pattern that matches the end of a module's path, as PEFT chooses it."""
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default
