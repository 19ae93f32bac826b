"""Measuring versions: which test images of one data set each version answers correctly, in each label space.

All questions that a set of versions has to answer about one data set are planned first; then every expert that any plan
needs is rebuilt once, sees the images that any plan sends it, and is dropped. So memory holds the base and one expert,
and a version whose experts did not change costs only its sums. Without Ray.

Letters: N test images, C classes, D dimensions, T versions (session t is versions[t - 1]).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Generic, TypeVar

import numpy as np
import torch

from fusion.answers.clip import Clip
from fusion.answers.label_spaces import Plan, Prediction, Query
from fusion.answers.options import PredictOptions
from fusion.answers.predictor import ExpertModel
from fusion.answers.rules import answer, plan
from fusion.answers.view import View
from fusion.decouple import decoupled_tensors
from fusion.store.blobs import BlobRef
from fusion.store.node_cache import NodeCache
from training.data.task_data import TaskData

KINDS = ("known", "unknown", "union")
"""The three matrices: `known` (label space `task`, and `labels` before the task is learned), `unknown` (`labels` for
all tasks), `union` (`seen`, learned tasks only)."""


Found = TypeVar("Found")


@dataclass(frozen=True)
class SetMeasure:
    """Which images of one test set were answered correctly: bool [N] each, so that differences can be paired.

    Attributes:
        name: the task's name.
        num_classes, num_images: of the test set.
        zero_shot: by the base alone.
        right: kind to answers after each session; None where the kind does not apply.
        routed: images whose first routed task was their own, after the last session; None for a task never learned.
    """

    name: str
    num_classes: int
    num_images: int
    zero_shot: np.ndarray
    right: dict[str, tuple[np.ndarray | None, ...]]
    routed: np.ndarray | None


@dataclass(frozen=True)
class LoadedSet:
    """A test set that the base has seen: what every measurement of it starts from.

    Attributes:
        test: its `test` images are what is measured.
        base: the base's model, which all versions share.
        pixels: preprocessed, float32 [N, 3, H, W].
        features: the base's unit image features, float32 [N, D].
    """

    test: TaskData
    base: ExpertModel
    pixels: torch.Tensor
    features: torch.Tensor


def load_set(base: Clip, test: TaskData) -> LoadedSet:
    """Decode a test set and show it to the base, once."""
    pixels = load_pixels(base, test)
    return LoadedSet(test, ExpertModel(base), pixels, base.image_features(pixels))


@dataclass(frozen=True)
class Measurement(Generic[Found]):
    """Questions about one test set, and what their answers come to.

    Attributes:
        plans: one per question, with the version that it is asked of.
        read: from the logits of each plan's jobs to what was measured.
    """

    plans: Sequence[tuple[View, Plan]]
    read: Callable[[Sequence[Sequence[torch.Tensor]]], Found]


def measure_together(cache: NodeCache, loaded: LoadedSet, measurements: Sequence[Measurement[Any]]) -> list[Any]:
    """What each measurement found. An expert that several of them need sees the images once."""
    logits = iter(job_logits(cache, loaded, [plan for one in measurements for plan in one.plans]))
    return [one.read(list(islice(logits, len(one.plans)))) for one in measurements]


def measure_set(
    cache: NodeCache, loaded: LoadedSet, views: Sequence[View], *, kinds: Sequence[str] = KINDS, predict: PredictOptions
) -> SetMeasure:
    """Measure versions on one test set: `over_sessions`, by itself."""
    found: SetMeasure = measure_together(cache, loaded, [over_sessions(loaded, views, kinds=kinds, predict=predict)])[0]
    return found


def over_sessions(
    loaded: LoadedSet, views: Sequence[View], *, kinds: Sequence[str] = KINDS, predict: PredictOptions
) -> Measurement[SetMeasure]:
    """Which images versions answer correctly.

    Args:
        views: session by session.
        kinds: which matrices.
        predict: how images are answered in `labels` and `seen`.
    """
    test = loaded.test
    questions = [
        (kind, t, query, plan(query, views[t], loaded.features, num_images=len(test.test)))
        for kind in kinds
        for t, view in enumerate(views)
        if (query := _query(kind, test, view, predict)) is not None
    ]

    def read(logits: Sequence[Sequence[torch.Tensor]]) -> SetMeasure:
        right: dict[str, list[np.ndarray | None]] = {kind: [None] * len(views) for kind in kinds}
        routed = None
        for (kind, t, query, steps), found in zip(questions, logits, strict=True):
            predictions = answer(steps, found)
            right[kind][t] = right_answers(predictions, test, with_task=query.label_space == "seen")
            if t == len(views) - 1 and query.label_space != "task" and test.name in views[t].routable():
                routed = np.array([name == test.name for name in steps.routed])
        return SetMeasure(
            name=test.name,
            num_classes=len(test.classes),
            num_images=len(test.test),
            zero_shot=right_of(loaded.base, loaded.features, test),
            right={kind: tuple(values) for kind, values in right.items()},
            routed=routed,
        )

    return Measurement([(views[t], steps) for _, t, _, steps in questions], read)


def expert_logits(cache: NodeCache, loaded: LoadedSet, weights: BlobRef) -> torch.Tensor:
    """Logits, float32 [N, C], of an expert's own weights as training left them, over its task's classes."""
    file = cache.tensors(weights)
    tensors = ((name, file.tensor(name)) for name in file.specs)
    return logits_with(loaded.base.clip, tensors, loaded.pixels, loaded.test)


def logits_with(
    base: Clip, tensors: Iterable[tuple[str, torch.Tensor]], pixels: torch.Tensor, test: TaskData
) -> torch.Tensor:
    """Logits, float32 [N, C], of a base with these tensors of its own, over a task's classes."""
    model = ExpertModel(base.copy_with(tensors))
    return model.feature_logits(model.clip.image_features(pixels), tuple(test.classes), tuple(test.templates))


def plain_logits(cache: NodeCache, loaded: LoadedSet, view: View) -> torch.Tensor:
    """Likewise of the expert that a version decouples: float32 [N, C]."""
    steps = plan(plain_query(loaded.test), view, loaded.features, num_images=len(loaded.features))
    return job_logits(cache, loaded, [(view, steps)])[0][0]


def plain_query(test: TaskData) -> Query:
    """The task is named, and its expert answers by its texts alone: what modes are compared by."""
    return Query("task", task=test.name, rule="mean")


def right_of(model: ExpertModel, features: torch.Tensor, test: TaskData) -> np.ndarray:
    """Correct answers, bool [N], of one model alone, from its unit image features [N, D]."""
    return right_in(model.feature_logits(features, tuple(test.classes), tuple(test.templates)), test)


def right_in(logits: torch.Tensor, test: TaskData) -> np.ndarray:
    """Correct answers, bool [N], of logits [N, C] over the test set's classes."""
    return (logits.argmax(1) == torch.from_numpy(test.test.labels)).numpy()


def load_pixels(base: Clip, test: TaskData) -> torch.Tensor:
    """All test images of a set, preprocessed: float32 [N, 3, H, W]."""
    return base.pixels([test.test.image(i) for i in range(len(test.test))])


def _query(kind: str, test: TaskData, view: View, predict: PredictOptions) -> Query | None:
    learned = test.name in view.tasks
    if kind == "known" and learned:
        return Query("task", task=test.name, rule=predict.rule)
    if kind == "union":
        return Query("seen", top_k=predict.top_k, rule=predict.rule) if learned else None
    labels, templates = tuple(test.classes), tuple(test.templates)
    return Query("labels", labels=labels, templates=templates, top_k=predict.top_k, rule=predict.rule)


def job_logits(cache: NodeCache, loaded: LoadedSet, plans: Sequence[tuple[View, Plan]]) -> list[list[torch.Tensor]]:
    """Logits of every plan's jobs. Experts are rebuilt one after the other, each for everything that any plan asks."""
    needed: dict[str | None, list[tuple[int, int]]] = {}
    for p, (view, steps) in enumerate(plans):
        for j, job in enumerate(steps.jobs):
            needed.setdefault(view.tasks[job.task].expert if job.task else None, []).append((p, j))
    found: dict[tuple[int, int], torch.Tensor] = {}
    for places in needed.values():
        jobs = [plans[p][1].jobs[j] for p, j in places]
        model, features = loaded.base, loaded.features
        if (task := jobs[0].task) is not None:
            manifest = plans[places[0][0]][0].manifest
            expert = loaded.base.clip.copy_with(decoupled_tensors(cache, manifest, task))
            model = ExpertModel(expert, plans[places[0][0]][0].tasks[task])
            wanted = sorted({image for job in jobs for image in job.images})
            features = torch.full_like(loaded.features, torch.nan)
            features[wanted] = model.clip.image_features(loaded.pixels[wanted])
        for place, job in zip(places, jobs, strict=True):
            found[place] = model.job_logits(features[list(job.images)], job)
    return [[found[p, j] for j in range(len(steps.jobs))] for p, (_, steps) in enumerate(plans)]


def right_answers(predictions: Iterable[Prediction], test: TaskData, *, with_task: bool) -> np.ndarray:
    """Which answers name the test image's class (and task), bool [N]."""
    return np.array(
        [
            prediction.label == test.classes[label] and (not with_task or prediction.task == test.name)
            for prediction, label in zip(predictions, test.test.labels.tolist(), strict=True)
        ]
    )
