"""Measuring how one version answers a test set in every way that it can be asked, with the probabilities it gives.

Beside right and wrong: are probabilities what they say (calibration), is a foreign image recognised (familiarity), what
does an answer cost (expert forwards), and what happens when labels of many tasks are asked together.

Letters: N test images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fusion.answers.label_spaces import Plan, Prediction, Query
from fusion.answers.options import PredictOptions
from fusion.answers.prompts import DEFAULT_TEMPLATES
from fusion.answers.rules import answer, plan
from fusion.answers.view import View
from training.evaluate import LoadedSet, Measurement, plain_query, right_answers

PLAIN, TASK, LABELS, SEEN = "plain", "task", "labels", "seen"
ALL_LEARNED, EVERYTHING = "all_learned", "everything"
"""The ways of asking. `plain`: the task is named and its expert answers by its texts alone, as the paper has it.
`task`, `labels` (the set's own), `seen`: the label spaces, by the configured rule. `all_learned`: the labels of all
learned tasks in one request; `everything`: these and the labels of the never-trained sets."""


@dataclass(frozen=True)
class Asked:
    """Answers to one way of asking, [N] each.

    Attributes:
        right: bool.
        confidence: the probability of the answer.
        uncalibrated: the same without temperatures.
        forwards: experts that the image took.
        base: whether the bare base would have been right; None where it can't be asked so.
    """

    right: np.ndarray
    confidence: np.ndarray
    uncalibrated: np.ndarray
    forwards: np.ndarray
    base: np.ndarray | None = None


@dataclass(frozen=True)
class AnswerMeasure:
    """How one version answers one test set.

    Attributes:
        classes: of the set.
        asked: by way of asking; those that apply to the set.
        familiarity: of each image, float [N]; None where the rule has no evidence to tell it from.
        base_confidence: largest probability that the base gives to any learned class, float [N]: the usual way to
            recognise foreign images.
        plain: logits of the task's expert by its texts alone, float32 [N, C]; None where there is no such expert.
    """

    classes: tuple[str, ...]
    asked: Mapping[str, Asked]
    familiarity: np.ndarray | None
    base_confidence: np.ndarray
    plain: torch.Tensor | None = None


def every_way(
    loaded: LoadedSet, view: View, predict: PredictOptions, *, foreign: Sequence[str] = ()
) -> Measurement[AnswerMeasure]:
    """How one version answers, in every way of asking.

    Args:
        predict: how images are answered.
        foreign: labels that no task was taught, for `everything`.
    """
    questions = _questions(loaded, view, predict, foreign)
    plans = [plan(query, view, loaded.features, num_images=len(loaded.features)) for query in questions.values()]

    def read(logits: Sequence[Sequence[torch.Tensor]]) -> AnswerMeasure:
        asked, familiarity, plain = {}, None, None
        for (name, query), steps, found in zip(questions.items(), plans, logits, strict=True):
            predictions = answer(steps, found)
            asked[name] = Asked(
                right=right_answers(predictions, loaded.test, with_task=query.label_space == "seen"),
                confidence=_confidence(predictions),
                uncalibrated=_confidence(answer(steps, _without_temperatures(view, steps, found))),
                forwards=np.array([len(one.experts) for one in predictions], float),
                base=_base_right(loaded, query) if query.label_space == "labels" else None,
            )
            if name == SEEN and predictions[0].familiarity is not None:
                familiarity = np.array([one.familiarity for one in predictions], float)
            if name == PLAIN and any(job.task for job in steps.jobs):
                plain = found[0]
        return AnswerMeasure(tuple(loaded.test.classes), asked, familiarity, _base_confidence(loaded, view), plain)

    return Measurement([(view, steps) for steps in plans], read)


def _questions(loaded: LoadedSet, view: View, predict: PredictOptions, foreign: Sequence[str]) -> dict[str, Query]:
    test = loaded.test
    how: dict[str, Any] = {"top_k": predict.top_k, "rule": predict.rule}
    learned = list(dict.fromkeys(name for task in view.tasks.values() for name in task.classes))
    found = {LABELS: Query("labels", labels=tuple(test.classes), templates=tuple(test.templates), **how)}
    if test.name in view.tasks:
        found[PLAIN] = plain_query(test)
        found[TASK] = Query("task", task=test.name, **how)
        found[ALL_LEARNED] = Query("labels", labels=tuple(learned), templates=DEFAULT_TEMPLATES, **how)
    if view.routable():
        found[SEEN] = Query("seen", **how)
    everything = tuple(dict.fromkeys([*learned, *foreign]))
    found[EVERYTHING] = Query("labels", labels=everything, templates=DEFAULT_TEMPLATES, **how)
    return found


def _confidence(predictions: Sequence[Prediction]) -> np.ndarray:
    return np.array([one.probability for one in predictions], float)


def _without_temperatures(view: View, steps: Plan, logits: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The logits of a plan's jobs as they were before they were calibrated. Tasks without an expert keep theirs."""
    return [
        z * view.tasks[job.task].temperature if job.task and job.joined else z
        for job, z in zip(steps.jobs, logits, strict=True)
    ]


def _base_right(loaded: LoadedSet, query: Query) -> np.ndarray:
    scores = loaded.base.feature_logits(loaded.features, query.labels, query.templates)
    truth = [loaded.test.classes[label] for label in loaded.test.test.labels.tolist()]
    return np.array([query.labels[best] == name for best, name in zip(scores.argmax(1).tolist(), truth, strict=True)])


def _base_confidence(loaded: LoadedSet, view: View) -> np.ndarray:
    tasks = [task for task in view.tasks.values() if task.classes]
    scores = [loaded.base.feature_logits(loaded.features, task.classes, task.templates) for task in tasks]
    return torch.cat(scores, dim=1).softmax(1).amax(1).numpy() if scores else np.zeros(len(loaded.features))
