"""Answers from a store, in this process: what `condu predict --store` has in place of a client of the service."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from fusion.answers.clip import preprocess_config
from fusion.answers.images import decode
from fusion.answers.label_spaces import Query
from fusion.answers.options import PredictOptions
from fusion.answers.predictor import Predictor
from fusion.errors import ConduError
from fusion.store import open_store
from fusion.store.node_cache import NodeCache
from serving.client import Answer, NamedImage
from serving.client.images import read_all
from serving.client.talk import Question
from serving.schemas import ImagePrediction, PredictResponse

_BATCH = 64


def answers_from_store(url: str, images: Sequence[NamedImage], question: Question) -> Iterator[Answer]:
    """An answer for every image, in their order, all from one version.

    Raises: the errors of the store and of the question. An image that can't be used is an answer with a problem.
    """
    predictor = Predictor(NodeCache(open_store(url)))
    query = _query(question)
    view = predictor.view(question.get("version"))
    query.check(view)
    preprocess = preprocess_config(predictor.shelf.base.clip.preprocess_cfg)
    background = view.background(query.task)
    rest = iter(images)
    while batch := list(islice(rest, _BATCH)):
        problems: dict[int, ConduError] = {}
        decoded = {}
        for i, image in enumerate(read_all(batch)):
            try:
                if image.problem:
                    raise image.problem
                decoded[i] = decode(image.body, image.name, preprocess=preprocess, background=background)
            except ConduError as error:
                problems[i] = error
        found = predictor.predict(list(decoded.values()), query, view=view) if decoded else []
        answered = dict(zip(decoded, found, strict=True))
        response = PredictResponse(
            version=view.version,
            label_space=query.label_space,
            matched={task: dict(meant) for task, meant in found[0].matched.items()} if found else {},
            predictions=[ImagePrediction.of(batch[i].name, prediction) for i, prediction in answered.items()],
            warnings=list(found[0].warnings) if found else [],
            expert_forwards=sum(prediction.forwards for prediction in found),
            seconds=0.0,
        )
        predictions = dict(zip(answered, response.predictions, strict=True))
        for i, asked in enumerate(batch):
            if i in problems:
                yield Answer(asked.name, problem=problems[i])
            else:
                yield Answer(asked.name, predictions[i], response)


def _query(question: Question) -> Query:
    task, labels, templates = question.get("task"), question.get("labels"), question.get("templates")
    given: dict[str, Any] = {"templates": tuple(templates)} if templates else {}
    return Query(
        "task" if task is not None else "labels" if labels else "seen",
        task=task,
        labels=tuple(labels or ()),
        top_k=question.get("top_k") or PredictOptions.top_k,
        abstain=question.get("abstain"),
        **given,
    )
