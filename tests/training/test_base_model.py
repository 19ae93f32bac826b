"""One model serves task after task, and no task can tell."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fusion.store import open_store
from fusion.store.node_cache import NodeCache
from tests.tiny import BATCH_NORM_CFG, MODEL_CFG, SHAPES, tiny_base, tiny_task
from training.base_model import BaseModel
from training.data.task_data import load_task_data
from training.expert import train_expert
from training.finetune import TrainingDivergedError
from training.recipe import Recipe

FULL = Recipe(steps=5, batch_size=8, lr=1e-3, warmup_steps=1, augment="none", weight_decay=0.1)
LORA = replace(FULL, method="lora", lora_rank=2, lora_targets="all", lr=1e-2)
PROBED = replace(FULL, probe_steps=5, text_lr=0.0, average=0.5)
DIVERGING = replace(LORA, lr=1e30)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("model_cfg", [MODEL_CFG, BATCH_NORM_CFG], ids=["transformer", "convolutions"])
@pytest.mark.parametrize("before", [FULL, LORA, PROBED, DIVERGING], ids=["full", "lora", "probed", "diverging"])
def test_a_task_ends_with_the_same_bytes_whatever_was_trained_before_it(
    tmp_path: Path, before: Recipe, model_cfg: dict[str, Any]
) -> None:
    shapes = load_task_data("shapes", tiny_task(tmp_path / "shapes", classes=SHAPES, num_train=4))
    colours = load_task_data("colours", tiny_task(tmp_path / "colours", num_train=4))
    ends = []
    for name in ("alone", "second"):
        store = open_store((tmp_path / name).as_uri())
        base, cache = tiny_base(store, model_cfg=model_cfg), NodeCache(store)
        model = BaseModel(base, cache)
        if name == "second":
            try:
                train_expert(store, cache, base, shapes, before, seed=0, model=model)
            except TrainingDivergedError:
                assert before == DIVERGING
        record = train_expert(store, cache, base, colours, FULL, seed=0, model=model)
        assert record.expert is not None
        assert record.prototypes is not None
        assert record.evidence is not None
        ends.append((record.expert.sha256, record.prototypes.sha256, record.evidence.sha256))
    assert ends[0] == ends[1]


def test_the_model_of_a_full_fine_tuning_is_kept(tmp_path: Path) -> None:
    store = open_store((tmp_path / "store").as_uri())
    base = tiny_base(store)
    model = BaseModel(base, NodeCache(store))
    data = load_task_data("shapes", tiny_task(tmp_path / "shapes", classes=SHAPES, num_train=4))
    with model.borrowed() as first:
        pass
    train_expert(store, NodeCache(store), base, data, FULL, seed=0, model=model)
    with model.borrowed() as again:
        assert again is first
