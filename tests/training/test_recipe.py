from __future__ import annotations

import json

import pytest

from fusion.errors import ConfigError
from training.recipe import Recipe


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
    assert Recipe(save_every_steps=7).to_json() == settings
    assert Recipe(lr=2e-5).to_json() != settings
    assert {"lr", "betas", "augment", "flip", "few_shot", "precision", "templates"} <= set(settings)


def test_all_wrong_values_are_named_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        Recipe(steps=0, lr=-1, label_smoothing=1.0, precision="fp16", augment="blur", clip_grad=0.0)  # type: ignore[arg-type]
    for word in ("steps", "lr", "label_smoothing", "'fp16'", "'blur'", "clip_grad"):
        assert word in str(caught.value)


def test_a_warm_up_as_long_as_the_training_is_refused() -> None:
    with pytest.raises(ConfigError, match="warmup_steps is 100, it has to be below steps, which is 100"):
        Recipe(steps=100)
