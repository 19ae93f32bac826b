"""`condu data select`: images are read and shown to the base, `training.selection` chooses."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import torch
from PIL import Image

from cluster.base_source import resolve_base
from cluster.config import BaseConfig
from fusion.answers.clip import Clip, build_clip, preprocess_config
from fusion.answers.images import decode
from fusion.answers.label_spaces import Query
from fusion.answers.predictor import Predictor
from fusion.answers.rules import plan
from fusion.errors import ConduError, ConfigError, DataError
from fusion.store.address import StoreAddress
from fusion.versions.history import Versions
from serving.client.images import NamedImage
from training.data.task_data import Reading, load_task_data
from training.finetune import image_features
from training.selection import answer_by_labelled, entropy, select

_BATCH = 64


@dataclass(frozen=True)
class Chosen:
    """An image to label.

    Attributes:
        image: its name.
        speaks_for: how many images it stands for that no earlier one does, those that nobody is sure of counting most.
        uncertainty: entropy of the current answer, 0 to 1; None without one.
        label, probability: the current answer; None without one.
    """

    image: NamedImage
    speaks_for: float
    uncertainty: float | None = None
    label: str | None = None
    probability: float | None = None


@dataclass(frozen=True)
class Selection:
    """What `condu data select` found.

    Attributes:
        chosen: the most telling first.
        num_images: looked at, without those below.
        num_labelled: of the images given, those that are among the labelled ones.
        problems: of images that can't be used, a sentence each.
        answered_by: whose answers are uncertain; None: nobody's are known.
    """

    chosen: Sequence[Chosen]
    num_images: int
    num_labelled: int
    problems: Sequence[str]
    answered_by: str | None


@dataclass(frozen=True)
class _Seen:
    """Images after the models saw them: base features [N, D], and answers [N, C] where a task gives some."""

    images: list[NamedImage]
    features: torch.Tensor
    answers: torch.Tensor | None
    num_labelled: int
    problems: list[str]


@dataclass(frozen=True)
class _Known:
    """Images with labels: unit features of the base [M, D], labels int64 [M], and the sha256 of each."""

    classes: tuple[str, ...]
    features: torch.Tensor
    labels: torch.Tensor
    hashes: frozenset[bytes]


def select_images(
    images: Sequence[NamedImage],
    budget: int,
    *,
    address: StoreAddress,
    base: BaseConfig | None,
    task: str | None = None,
    labelled: str | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> Selection:
    """Choose which of the images to label.

    Args:
        address: of a store. The base of its newest version sees the images.
        base: what does in a store without a version; None: nothing.
        task: of the store's newest version; its answers tell which images are uncertain.
        labelled: data as training reads it: images that have labels. They are not chosen again, and where no task is
            named their discriminant answers.
        progress: called with the number of images after each batch.
    Raises:
        ConfigError: there is no base, or no such task. DataError: the labelled data can't be read, or no image is left.
    """
    clip, answers = _models(address, base, task)
    known = _known(labelled, clip) if labelled is not None else None
    seen = _see(images, clip, answers, known.hashes if known else frozenset(), progress)
    if not seen.images:
        raise DataError("no image is left to choose from: " + (seen.problems or ["all of them are labelled"])[0])
    probabilities: torch.Tensor | None = None
    classes: tuple[str, ...] = ()
    answered_by: str | None = None
    if answers is not None:
        probabilities, classes, answered_by = seen.answers, answers.classes, f"task {task}"
    elif known is not None:
        probabilities = answer_by_labelled(seen.features, known.features, known.labels, len(known.classes))
        classes, answered_by = known.classes, "the labelled images"
    doubts = entropy(probabilities) if probabilities is not None else None
    chosen = []
    for pick in select(seen.features, budget, uncertainty=doubts, labelled=known.features if known else None):
        image = seen.images[pick.index]
        if probabilities is None or doubts is None:
            chosen.append(Chosen(image, pick.gain))
            continue
        best = int(probabilities[pick.index].argmax())
        probability = float(probabilities[pick.index, best])
        chosen.append(Chosen(image, pick.gain, float(doubts[pick.index]), classes[best], probability))
    return Selection(chosen, len(seen.images), seen.num_labelled, seen.problems, answered_by)


class _TaskAnswers:
    """What a published task says of images."""

    def __init__(self, predictor: Predictor, task: str) -> None:
        self._predictor, self._view = predictor, predictor.view()
        self._query = Query("task", task=task)
        self._query.check(self._view)
        self.classes = self._view.tasks[task].classes
        self.background = self._view.background(task)

    def of(self, pixels: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """Calibrated probabilities, [B, C], of pixels [B, 3, H, W] with base features [B, D]."""
        steps = plan(self._query, self._view, features, num_images=len(pixels))
        if steps.context is not None:
            return steps.context[1].softmax(1)
        (job,) = steps.jobs
        assert job.task is not None
        expert = self._predictor.shelf.expert(self._view, job.task)
        return expert.job_logits(expert.clip.image_features(pixels), job).softmax(1)


def _models(address: StoreAddress, base: BaseConfig | None, task: str | None) -> tuple[Clip, _TaskAnswers | None]:
    cache = address.open_cache()
    if Versions(cache.store).newest() is not None:
        predictor = Predictor(cache)
        return predictor.shelf.base.clip, _TaskAnswers(predictor, task) if task is not None else None
    if base is None or task is not None:
        raise ConfigError(
            f"{cache.store.url} has no version yet"
            + (f", so there is no task {task!r}: leave --task out" if task else ": name a configuration, for its base")
        )
    resolved = resolve_base(base, cache.store)
    return build_clip(resolved, cache.tensors(resolved.weights)), None


def _known(source: str, clip: Clip) -> _Known:
    data = load_task_data("labelled", source, Reading())
    parts = [replace(data, train=part) for part in (data.train, data.test)]
    features = torch.cat([image_features(clip, part) for part in parts])
    labels = torch.from_numpy(np.concatenate([part.look.labels for part in parts]))
    hashes = frozenset(one.tobytes() for part in (data.train, data.test) for one in part.samples.hashes)
    return _Known(data.classes, features, labels, hashes)


def _see(
    images: Sequence[NamedImage],
    clip: Clip,
    answers: _TaskAnswers | None,
    labelled: frozenset[bytes],
    progress: Callable[[int], None],
) -> _Seen:
    background = answers.background if answers else None
    preprocess = preprocess_config(clip.preprocess_cfg)
    kept: list[NamedImage] = []
    features, told, problems, num_labelled = [], [], [], 0
    rest = iter(images)
    while batch := list(islice(rest, _BATCH)):
        pictures: list[Image.Image] = []
        for image in batch:
            try:
                body = image.read()
                if hashlib.sha256(body).digest() in labelled:
                    num_labelled += 1
                    continue
                pictures.append(decode(body, image.name, preprocess=preprocess, background=background))
                kept.append(image)
            except ConduError as error:
                problems.append(str(error))
        if pictures:
            pixels = clip.pixels(pictures)
            features.append(clip.image_features(pixels))
            if answers:
                told.append(answers.of(pixels, features[-1]))
        progress(len(batch))
    seen = torch.cat(features) if features else torch.empty(0, 0)
    return _Seen(kept, seen, torch.cat(told) if told else None, num_labelled, problems)
