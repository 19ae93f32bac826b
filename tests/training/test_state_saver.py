"""States are written beside the steps: one at a time, when it pays, and never silently not at all."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fusion.answers.clip import Clip
from fusion.errors import StoreUnavailableError
from fusion.tensors import write_tensors
from tests.tiny import tiny_task
from tests.training.weights import tensors_of
from training.data.task_data import TaskData, load_task_data
from training.finetune import finetune
from training.recipe import Recipe
from training.state_saver import State, StateSaver

RECIPE = Recipe(steps=16, batch_size=8, lr=1e-3, warmup_steps=2, augment="none", save_every_seconds=0.0, average=0.5)
BY_STEPS = replace(RECIPE, save_every_steps=4)
TIMEOUT_S = 60


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def data(tmp_path: Path) -> TaskData:
    return load_task_data("colours", tiny_task(tmp_path / "colours", num_train=4))


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def test_steps_go_on_while_a_state_is_written_and_it_holds_the_step_of_its_copy(
    new_clip: Callable[[], Clip], data: TaskData, tmp_path: Path
) -> None:
    """The writer waits for three further steps, which a step that waited for the writer would never take."""
    begun, later = threading.Event(), threading.Event()
    saved: list[int] = []
    ended: list[int] = []

    def write(step: int, tensors: State) -> None:
        saved.append(step)
        begun.set()
        assert later.wait(TIMEOUT_S), "the steps waited for the writer"
        write_tensors(tmp_path / f"{step}.safetensors", tensors)
        ended.append(step)

    def progress(step: int, _: float) -> None:
        if saved and step >= saved[0] + 3:
            later.set()
        elif step == 3:
            assert begun.wait(TIMEOUT_S)

    undisturbed, whole, resumed = new_clip(), new_clip(), new_clip()
    finetune(undisturbed, data, RECIPE, seed=0)
    finetune(whole, data, RECIPE, seed=0, on_state=write, on_progress=progress)
    assert saved[0] == 2
    assert all(step >= 5 for step in saved[1:]), "a second save waited while the first was written"
    assert ended == saved, "what was being written at the end is written"
    finetune(resumed, data, RECIPE, seed=0, state=tmp_path / "2.safetensors")
    assert same(tensors_of(undisturbed), tensors_of(whole))
    assert same(tensors_of(undisturbed), tensors_of(resumed))


def test_by_steps_every_state_is_saved_however_slow_the_store_is(new_clip: Callable[[], Clip], data: TaskData) -> None:
    saved: list[int] = []

    def write(step: int, tensors: State) -> None:
        threading.Event().wait(0.2)
        saved.append(step)

    finetune(new_clip(), data, BY_STEPS, seed=0, on_state=write)
    assert saved == [4, 8, 12]


@pytest.mark.parametrize(("recipe", "latest"), [(BY_STEPS, 8), (replace(BY_STEPS, save_every_steps=12), 16)])
def test_a_state_that_can_t_be_written_ends_the_training_with_its_error(
    new_clip: Callable[[], Clip], data: TaskData, recipe: Recipe, latest: int
) -> None:
    """At a later step, or at the latest when the steps are done."""
    steps: list[int] = []

    def write(step: int, tensors: State) -> None:
        raise StoreUnavailableError("the store is gone")

    with pytest.raises(StoreUnavailableError, match="the store is gone"):
        finetune(new_clip(), data, recipe, seed=0, on_state=write, on_progress=lambda step, _: steps.append(step))
    assert steps[-1] <= latest


def test_a_training_that_fails_keeps_its_own_error_and_the_state_that_was_being_written(
    new_clip: Callable[[], Clip], data: TaskData
) -> None:
    saved: list[int] = []

    def write(step: int, tensors: State) -> None:
        threading.Event().wait(0.2)
        saved.append(step)

    def interrupted(step: int, _: float) -> None:
        if step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finetune(new_clip(), data, BY_STEPS, seed=0, on_state=write, on_progress=interrupted)
    assert saved == [4]


def test_nothing_is_saved_without_a_writer() -> None:
    with StateSaver(BY_STEPS, None) as saver:
        assert not any(saver.due(step) for step in range(1, 17))


def steps_saved(recipe: Recipe, *, step_s: float, write_s: float = 0.0) -> list[int]:
    """The steps after which a state is saved, by a clock that moves `step_s` a step and `write_s` a write."""
    now = [0.0]

    def write(step: int, tensors: State) -> None:
        now[0] += write_s

    saved = []
    with StateSaver(recipe, write, clock=lambda: now[0]) as saver:
        for done in range(1, recipe.steps + 1):
            now[0] += step_s
            if saver.due(done):
                saved.append(done)
                saver.begin(done, {})
                assert saver._writing is not None
                saver._writing.result()  # the clock stands while it is written
    return saved


def test_a_time_decides_how_often_and_the_rest_of_the_task_whether_at_all() -> None:
    recipe = Recipe(steps=1000, save_every_seconds=100.0)
    assert steps_saved(recipe, step_s=1.0) == [100, 200, 300, 400, 500, 600, 700, 800, 900]
    assert steps_saved(recipe, step_s=0.45) == [223, 446, 669], "not at 892, 49 s before the end"
    assert steps_saved(recipe, step_s=0.14) == [], "nor 40 s before the end of a task of 140 s"
    assert steps_saved(recipe, step_s=1.0, write_s=50.0)[:2] == [100, 200], "an interval begins when a write ends"
