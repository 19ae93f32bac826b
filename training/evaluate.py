"""Measuring versions: which test images of one data set each version answers right, in each label space.

All questions that a set of versions has to answer about one data set are planned first; then every expert that any plan
needs is rebuilt once, sees the images that any plan sends it, and is let go. So memory holds the base and one expert,
and a version whose experts did not change costs only its sums. No Ray in here.

Letters: N test images, C classes, D dimensions, T versions (session t is versions[t - 1]).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from fusion.blobs import BlobRef
from fusion.cache import NodeCache
from fusion.clip import Clip
from fusion.fuse import decoupled_tensors
from fusion.labelspaces import Plan, Prediction, Query, answer, plan
from fusion.predictor import ExpertModel
from fusion.view import View
from training.data import TaskData

KINDS = ("known", "unknown", "union")
"""The three matrices: `known` (label space `task`, and `labels` before the task is learned), `unknown` (`labels` for
all tasks), `union` (`seen`, learned tasks only)."""


@dataclass(frozen=True)
class SetMeasure:
    """Which images of one test set were answered right: bool [N] each, so that differences can be paired.

    Attributes:
        name: the task's name.
        num_classes, num_images: of the test set.
        zero_shot: by the base alone.
        right: kind to answers after each session; None where the kind has no answer there.
        routed: images whose first routed task was their own, after the last session; None for a task never learned.
    """

    name: str
    num_classes: int
    num_images: int
    zero_shot: np.ndarray
    right: dict[str, tuple[np.ndarray | None, ...]]
    routed: np.ndarray | None


def measure_set(
    cache: NodeCache,
    base: Clip,
    views: Sequence[View],
    test: TaskData,
    *,
    kinds: Sequence[str] = KINDS,
    top_k: int,
) -> SetMeasure:
    """Measure versions on one test set.

    Args:
        base: the base's model, which all versions share.
        views: session by session.
        test: its `test` images count.
        kinds: which matrices.
        top_k: experts consulted for an image in `labels` and `seen`.
    """
    pixels = load_pixels(base, test)
    model = ExpertModel(base)
    features = base.image_features(pixels)
    questions = [
        (kind, t, query, plan(query, views[t], features, num_images=len(test.test)))
        for kind in kinds
        for t, view in enumerate(views)
        if (query := _query(kind, test, view, top_k)) is not None
    ]
    logits = _Logits(cache, model, features, pixels)
    answers = dict(_answers(logits, [(views[t], steps) for _, t, _, steps in questions]))
    right: dict[str, list[np.ndarray | None]] = {kind: [None] * len(views) for kind in kinds}
    routed = None
    for k, (kind, t, query, steps) in enumerate(questions):
        right[kind][t] = _right(answers[k], test, with_task=query.label_space == "seen")
        if t == len(views) - 1 and query.label_space != "task" and test.name in views[t].routable():
            routed = np.array([consulted[0] == test.name for consulted in steps.consulted])
    return SetMeasure(
        name=test.name,
        num_classes=len(test.classes),
        num_images=len(test.test),
        zero_shot=right_of(model, features, test),
        right={kind: tuple(values) for kind, values in right.items()},
        routed=routed,
    )


def measure_weights(cache: NodeCache, base: Clip, weights: BlobRef, test: TaskData) -> np.ndarray:
    """Right answers, bool [N], of an expert's own weights, as it left its training, over its task's classes."""
    file = cache.tensors(weights)
    expert = ExpertModel(base.copy_with((name, file.tensor(name)) for name in file.specs))
    return right_of(expert, expert.clip.image_features(load_pixels(base, test)), test)


def right_of(model: ExpertModel, features: torch.Tensor, test: TaskData) -> np.ndarray:
    """Right answers, bool [N], of one model alone, from its unit image features [N, D]."""
    scores = model.feature_logits(features, tuple(test.classes), tuple(test.templates))
    return (scores.argmax(1) == torch.from_numpy(test.test.labels)).numpy()


def load_pixels(base: Clip, test: TaskData) -> torch.Tensor:
    """All test images of a set, preprocessed: float32 [N, 3, H, W]."""
    return base.pixels([test.test.image(i) for i in range(len(test.test))])


def _query(kind: str, test: TaskData, view: View, top_k: int) -> Query | None:
    learned = test.name in view.tasks
    if kind == "known" and learned:
        return Query("task", task=test.name)
    if kind == "union":
        return Query("seen", top_k=top_k) if learned else None
    return Query("labels", labels=tuple(test.classes), templates=tuple(test.templates), top_k=top_k)


class _Logits:
    """Image features of every expert that is needed, on the images that it is needed for; one expert in memory."""

    def __init__(self, cache: NodeCache, base: ExpertModel, features: torch.Tensor, pixels: torch.Tensor) -> None:
        self._cache = cache
        self._base = base
        self._base_features = features
        self._pixels = pixels

    def of_expert(self, view: View, task: str, images: torch.Tensor) -> tuple[ExpertModel, torch.Tensor]:
        """An expert and its unit features, [N, D] with rows only where `images`, bool [N], says so."""
        expert = ExpertModel(self._base.clip.copy_with(decoupled_tensors(self._cache, view.manifest, task)))
        features = torch.full_like(self._base_features, torch.nan)
        features[images] = expert.clip.image_features(self._pixels[images])
        return expert, features

    def of_base(self) -> tuple[ExpertModel, torch.Tensor]:
        return self._base, self._base_features


def _answers(logits: _Logits, plans: Sequence[tuple[View, Plan]]) -> Iterator[tuple[int, list[Prediction]]]:
    """Answers of every plan, by its index. Experts are taken one after the other."""
    needed: dict[str | None, list[tuple[int, int]]] = {None: []}
    for p, (view, steps) in enumerate(plans):
        for j, job in enumerate(steps.jobs):
            key = view.tasks[job.task].expert if job.task else None
            needed.setdefault(key, []).append((p, j))
    found: dict[tuple[int, int], torch.Tensor] = {}
    for key, places in needed.items():
        if not places:
            continue
        view, steps = plans[places[0][0]]
        task = steps.jobs[places[0][1]].task
        wanted = torch.zeros(len(steps.consulted), dtype=torch.bool)
        for p, j in places:
            wanted[list(plans[p][1].jobs[j].images)] = True
        model, features = logits.of_expert(view, task, wanted) if key and task else logits.of_base()
        for p, j in places:
            job = plans[p][1].jobs[j]
            found[p, j] = model.feature_logits(features[list(job.images)], job.classes, job.templates)
    for p, (_, steps) in enumerate(plans):
        yield p, answer(steps, [found[p, j] for j in range(len(steps.jobs))])


def _right(predictions: Iterable[Prediction], test: TaskData, *, with_task: bool) -> np.ndarray:
    return np.array(
        [
            prediction.label == test.classes[label] and (not with_task or prediction.task == test.name)
            for prediction, label in zip(predictions, test.test.labels.tolist(), strict=True)
        ]
    )
