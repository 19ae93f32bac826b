"""Plain continual fine-tuning: one model trained on task after task. It forgets; a baseline for comparison."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from fusion.answers.clip import Clip
from fusion.answers.predictor import ExpertModel
from training.data.task_data import TaskData
from training.evaluate import load_pixels, right_of
from training.finetune import finetune
from training.methods import open_method
from training.recipe import Recipe


def continual_finetuning(clip: Clip, tasks: Sequence[tuple[TaskData, Recipe, int]]) -> Iterator[list[int]]:
    """Fine-tune one model on all tasks in their order, measuring it on every test set after each.

    Args:
        clip: the base; it is trained in place.
        tasks: data, recipe and seed of each task, as its expert was trained with.
    Yields:
        After each session the number of correct answers on every task, over that task's classes.
    """
    pixels = [load_pixels(clip, data) for data, _, _ in tasks]
    for data, recipe, seed in tasks:
        method = open_method(recipe.method)
        always = recipe if method.trains and not method.may_drop else replace(recipe, method="full")
        finetune(clip, data, replace(always, held_out=0), seed=seed)  # nobody asks what held-out images would tell
        model = ExpertModel(clip)  # a fresh cache of text features: the text encoder has changed
        yield [
            int(right_of(model, clip.image_features(images), test).sum())
            for images, (test, _, _) in zip(pixels, tasks, strict=True)
        ]
