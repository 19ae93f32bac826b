from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

import pytest

from fusion.errors import ConfigError
from fusion.versions.experts import expert_identity
from training.recipe import Recipe

OTHER: dict[str, Any] = {
    "steps": 2000,
    "batch_size": 32,
    "lr": 2e-5,
    "warmup_steps": 0,
    "betas": (0.8, 0.999),
    "eps": 1e-6,
    "weight_decay": 0.1,
    "label_smoothing": 0.0,
    "clip_grad": 1.0,
    "precision": "bf16",
    "gradient_accumulation": 2,
    "augment": "none",
    "flip": False,
    "few_shot": 16,
    "train_templates": "all",
    "balanced": True,
    "probe_steps": 80,
    "probe_lr": 2e-3,
    "text_lr": 0.0,
    "average": 0.33,
    "held_out": 0.67,
    "early_stop": 3,
    "validate_every_steps": 25,
    "lora_rank": 4,
    "lora_alpha": 8.0,
    "lora_targets": "all",
}
"""A value beside the default for each option that changes the result and has one."""


@dataclass(frozen=True)
class LaterRecipe(Recipe):
    """The recipe of a later release, with two more options."""

    rank: int | None = None
    layers: tuple[int, ...] = ()


def test_the_rate_warms_up_to_its_peak_and_falls_to_almost_nothing() -> None:
    recipe = Recipe(steps=50, warmup_steps=10, lr=1.0)
    rates = [recipe.learning_rate(step) for step in range(50)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] == rates[10] == 1.0
    assert rates[:10] == sorted(rates[:10])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert 0 < rates[-1] < 0.01


def test_only_what_changes_the_result_is_in_the_identity() -> None:
    settings = Recipe().to_json()
    assert settings == json.loads(json.dumps(settings))
    same = Recipe(save_every_steps=7, save_every_seconds=1.0, gradient_checkpointing=True)
    assert same.to_json() == settings
    for name, value in OTHER.items():
        changed = Recipe(**{name: value}).to_json()
        assert changed == json.loads(json.dumps(changed))
        assert changed.keys() - settings.keys() == {name}


def test_every_option_but_those_that_change_no_result_is_tried() -> None:
    without = {"save_every_seconds", "save_every_steps", "gradient_checkpointing", "method"}
    assert OTHER.keys() | without == asdict(Recipe()).keys()


@pytest.mark.parametrize(
    ("recipe", "identity"),
    [
        (Recipe(), "bd3b911c3ed726ec0b27151b8d3fd14e908f70133843ea8995034fbf10b2276c"),
        (
            Recipe(lr=5e-4, steps=90, warmup_steps=10, augment="draw", betas=(0.9, 0.98), few_shot=16),
            "b1600e6ef789765915c4e5dbb5bc3ebbfa7f665cec1e855590b78a7df0df3c6e",
        ),
    ],
    ids=["default", "several options set"],
)
def test_an_identity_stays_what_it_is(recipe: Recipe, identity: str) -> None:
    assert expert_identity(base="a" * 64, data="b" * 64, recipe=recipe.to_json(), seed=3) == identity


def test_a_new_option_at_its_default_renames_no_expert() -> None:
    for old in (Recipe(), Recipe(lr=5e-4, clip_grad=1.0)):
        new = LaterRecipe(**asdict(old))
        assert new.to_json() == old.to_json()
        assert LaterRecipe(**asdict(old), rank=8, layers=(1, 2)).to_json() == {
            **old.to_json(),
            "rank": 8,
            "layers": [1, 2],
        }


def test_a_default_stays_what_it_is() -> None:
    """Experts that were trained with it are found by an identity that does not hold it."""
    assert asdict(Recipe()) == {
        "steps": 1000,
        "batch_size": 64,
        "lr": 1e-5,
        "warmup_steps": 100,
        "betas": (0.9, 0.999),
        "eps": 1e-8,
        "weight_decay": 0.0,
        "label_smoothing": 0.2,
        "clip_grad": None,
        "precision": "fp32",
        "gradient_accumulation": 1,
        "gradient_checkpointing": False,
        "augment": "crop",
        "flip": True,
        "method": "full",
        "lora_rank": 16,
        "lora_alpha": None,
        "lora_targets": "mlp",
        "probe_steps": 0,
        "probe_lr": 1e-3,
        "text_lr": 1.0,
        "average": 0.0,
        "held_out": 0.0,
        "early_stop": None,
        "validate_every_steps": 50,
        "few_shot": None,
        "train_templates": "first",
        "balanced": False,
        "save_every_seconds": 120.0,
        "save_every_steps": None,
    }


def test_all_wrong_values_are_named_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        Recipe(steps=0, lr=-1, label_smoothing=1.0, precision="fp16", augment="blur", clip_grad=0.0)  # type: ignore[arg-type]
    for word in ("steps", "lr", "label_smoothing", "'fp16'", "'blur'", "clip_grad"):
        assert word in str(caught.value)


def test_a_warm_up_as_long_as_the_training_is_refused() -> None:
    with pytest.raises(ConfigError, match="warmup_steps is 100, it must be below steps, which is 100"):
        Recipe(steps=100)
