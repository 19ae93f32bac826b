"""Early stopping: training ends when images that no step sees say so, with the weights that did best on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fusion.answers.clip import LOGIT_SCALE, Clip
from fusion.errors import ConfigError, DataError
from fusion.store import Store
from fusion.store.address import StoreAddress
from fusion.store.node_cache import NodeCache
from fusion.tensors import write_tensors
from tests.tiny import SHAPES, tiny_base, tiny_parquet, tiny_task
from tests.training.weights import tensors_of
from training import validation
from training.batches import Batches
from training.data.task_data import TaskData, load_task_data
from training.expert import train_expert
from training.finetune import finetune, image_features
from training.held_out import held_out_images
from training.lanes.plan import plan_tasks
from training.lanes.task_queue import TaskJob
from training.recipe import Recipe
from training.state_saver import State
from training.validation import ValidationFigures, validation_images
from training.worker_group import WorkerGroup

RECIPE = Recipe(steps=60, batch_size=16, lr=1e-3, warmup_steps=2, augment="none", early_stop=2, validate_every_steps=4)
"""The tiny model soon does worse than before."""


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def data(tmp_path: Path) -> TaskData:
    return load_task_data("shapes", tiny_task(tmp_path / "shapes", classes=SHAPES, num_train=10))


def different(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> list[str]:
    return [name for name in one if not torch.equal(one[name], other[name])]


def asked(clip: Clip, data: TaskData) -> tuple[float, float]:
    """Accuracy and cross-entropy on the validation images, written out plainly."""
    images = validation_images(data)
    features = clip.image_features(clip.pixels([images.image(index) for index in range(len(images))]))
    logits = LOGIT_SCALE * features @ clip.class_features(data.classes, data.templates).T
    labels = torch.from_numpy(images.labels)
    loss = -logits.log_softmax(1)[torch.arange(len(labels)), labels].mean()
    return float((logits.argmax(1) == labels).double().mean()), float(loss)


def test_training_stops_after_its_patience_with_the_weights_that_did_best(
    new_clip: Callable[[], Clip], data: TaskData
) -> None:
    """Compared with a plain loop that looks at every evaluation: its weights at the best one are the result."""
    watched, seen = new_clip(), {}

    def look(step: int, _: float) -> None:
        if step % 4 == 0:
            seen[step] = (*asked(watched, data), tensors_of(watched))

    result = finetune(watched, data, RECIPE, seed=0, on_progress=look)
    assert list(seen) == list(range(4, result.steps + 1, 4))
    assert result.steps < RECIPE.steps
    best = max(seen, key=lambda step: (seen[step][0], -seen[step][1]))
    assert result.steps == best + 2 * 4, "patience is two evaluations"
    assert different(tensors_of(watched), seen[best][2]) == []
    assert different(tensors_of(watched), seen[result.steps][2]) != []
    figures = result.validation
    assert figures is not None
    assert (figures.best_step, figures.worse, figures.num_images) == (best, 2, 6)
    assert (figures.accuracy, figures.loss) == pytest.approx(seen[best][:2], rel=1e-5)


def test_of_equally_accurate_evaluations_the_surer_one_is_better() -> None:
    first = ValidationFigures(best_step=4, accuracy=0.5, loss=1.0, num_images=8)
    assert first.beats(None)
    assert not first.beats(first)
    assert replace(first, loss=0.9).beats(first)
    assert not replace(first, accuracy=0.4, loss=0.1).beats(first)
    assert ValidationFigures.from_metrics(first.metrics() | {"steps": 9.0}) == first


def test_no_step_sees_the_held_out_images(new_clip: Callable[[], Clip], data: TaskData) -> None:
    out = set(np.flatnonzero(held_out_images(torch.from_numpy(data.train.labels)).numpy()).tolist())
    assert len(out) == 6
    batches = Batches(new_clip(), data.train, RECIPE, seed=0, workers=WorkerGroup(), held_out_steps=RECIPE.steps)
    drawn = {index for step in range(RECIPE.steps) for index in batches._indices(step).tolist()}
    assert drawn == set(range(len(data.train))) - out


def test_nor_does_the_probe(new_clip: Callable[[], Clip], data: TaskData) -> None:
    recipe = replace(RECIPE, steps=5, probe_steps=5)
    features = image_features(new_clip(), data)
    spoiled = features.clone()
    spoiled[held_out_images(torch.from_numpy(data.train.labels))] = torch.nan
    one, other = new_clip(), new_clip()
    finetune(one, data, recipe, seed=0, base_features=features)
    finetune(other, data, recipe, seed=0, base_features=spoiled)
    assert different(tensors_of(one), tensors_of(other)) == []


@pytest.mark.parametrize("state_step", [3, 6, 24])
def test_a_resumed_training_stops_at_the_same_step_with_the_same_weights(
    new_clip: Callable[[], Clip], data: TaskData, tmp_path: Path, state_step: int
) -> None:
    """From a state before the first evaluation, from one after it, and from one past the best."""
    recipe = replace(RECIPE, save_every_steps=3)
    whole, resumed = new_clip(), new_clip()

    def save(step: int, tensors: State) -> None:
        write_tensors(tmp_path / f"{step}.safetensors", tensors)

    wanted = finetune(whole, data, recipe, seed=0, on_state=save)
    assert wanted.validation is not None
    assert wanted.validation.best_step < 24 < wanted.steps
    found = finetune(resumed, data, recipe, seed=0, state=tmp_path / f"{state_step}.safetensors")
    assert (found.steps, found.validation) == (wanted.steps, wanted.validation)
    assert different(tensors_of(whole), tensors_of(resumed)) == []


def test_a_record_says_where_training_stopped_and_another_run_finds_it(
    local_store: Store, data: TaskData, tmp_path: Path
) -> None:
    base, cache = tiny_base(local_store), NodeCache(local_store)
    record = train_expert(local_store, cache, base, data, RECIPE, seed=0)
    stopped = record.metrics["steps"]
    assert stopped < RECIPE.steps
    assert record.metrics["validation_best_step"] == stopped - 8
    job = TaskJob("shapes", str(tmp_path / "shapes"), RECIPE)
    (status,) = plan_tasks(StoreAddress(local_store.url), base, [job]).statuses
    assert (status.state, status.step, status.steps) == ("done", stopped, RECIPE.steps)


def with_validation(folder: Path, *, seed: int = 7) -> str:
    """A task with train/, val/ and test/."""
    tiny_task(folder, classes=SHAPES, num_train=10)
    other = tiny_task(folder.with_name(f"{folder.name}-more"), classes=SHAPES, num_train=3, num_test=1, seed=seed)
    (Path(other) / "train").rename(folder / "val")
    return str(folder)


@pytest.mark.parametrize("table", [False, True], ids=["folders", "Parquet"])
def test_a_validation_split_is_asked_in_place_of_training_images(
    new_clip: Callable[[], Clip], tmp_path: Path, table: bool
) -> None:
    source = with_validation(tmp_path / "task")
    if table:
        as_table = Path(tiny_parquet(tmp_path / "table", source))
        both = tmp_path / "both"
        (both / "train").mkdir(parents=True)
        (tmp_path / "task" / "val").rename(both / "test")
        (tmp_path / "task" / "train").rename(both / "train-unused")
        (both / "task.json").write_text((Path(source) / "task.json").read_text())
        for name in SHAPES:
            (both / "train" / name).mkdir()
        tiny_parquet(tmp_path / "val-table", str(both))
        (tmp_path / "val-table" / "test.parquet").rename(as_table / "validation.parquet")
        source = str(as_table)
    data = load_task_data("t", source, validation=True)
    unasked = load_task_data("t", source)
    assert data.validation is not None
    assert len(data.validation) == 9
    assert any("says when training stops" in note for note in data.notes)
    assert unasked.validation is None
    assert any("left out" in note for note in unasked.notes)
    assert data.sha256 != unasked.sha256
    result = finetune(new_clip(), data, RECIPE, seed=0)
    assert result.validation is not None
    assert result.validation.num_images == 9


def test_other_validation_images_are_another_expert_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    one, other = (with_validation(tmp_path / name, seed=seed) for name, seed in (("one", 7), ("other", 8)))
    hashes = {load_task_data("t", source, validation=True).sha256 for source in (one, other)}
    assert len(hashes) == 2
    assert len({load_task_data("t", source).sha256 for source in (one, other)}) == 1
    next(Path(one).glob("val/*/*.png")).write_bytes(b"no image")
    with pytest.raises(DataError, match=r"val/\w+/\d+\.png is not an image"):
        load_task_data("t", one, validation=True)
    load_task_data("t", one)  # nobody asks for it


def test_of_very_many_images_a_part_of_every_class_is_asked(data: TaskData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validation, "MOST", 3)
    assert validation_images(data).labels.tolist() == [0, 1, 2]


def test_too_few_images_to_hold_any_out_fail_the_task_before_it_is_trained(local_store: Store, tmp_path: Path) -> None:
    job = TaskJob("shapes", tiny_task(tmp_path / "shapes", classes=SHAPES, num_train=4), RECIPE)
    (status,) = plan_tasks(StoreAddress(local_store.url), tiny_base(local_store), [job]).statuses
    assert status.state == "failed"
    assert "early_stop needs validation images" in (status.reason or "")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"held_out": 0.5}, "early_stop is 2 and held_out 0.5"),
        ({"average": 0.5}, "early_stop is 2 and average 0.5"),
        ({"validate_every_steps": 60}, "validate_every_steps is 60, it must be below steps, which is 60"),
        ({"early_stop": 0}, "early_stop is 0"),
    ],
)
def test_options_that_contradict_it_are_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        replace(RECIPE, **changes)
