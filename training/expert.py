"""One task from data to a finished expert in the store: found if it exists, resumed if it was begun, else trained."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import torch

from fusion.answers.class_sums import sum_classes
from fusion.answers.clip import Clip
from fusion.answers.evidence import Evidence, measure_evidence
from fusion.answers.prototypes import class_prototypes
from fusion.errors import DamagedBlobError
from fusion.store import Store
from fusion.store.blobs import BlobRef, scratch_file
from fusion.store.node_cache import NodeCache
from fusion.tensors import write_tensors
from fusion.versions.bases import Base
from fusion.versions.experts import (
    ExpertRecord,
    count_attempt,
    drop_training_state,
    find_expert,
    find_training_state,
    put_expert,
    put_expert_file,
    put_training_state,
)
from training.base_model import BaseModel
from training.data.task_data import TaskData
from training.finetune import FinetuneResult, finetune, image_features
from training.held_out import head_temperature
from training.identity import identity_of
from training.methods import open_method
from training.recipe import Recipe
from training.state_saver import State
from training.worker_group import WorkerGroup

logger = logging.getLogger(__name__)


def train_expert(
    store: Store,
    cache: NodeCache,
    base: Base,
    data: TaskData,
    recipe: Recipe,
    *,
    seed: int,
    workers: WorkerGroup | None = None,
    progress: Callable[[int, float], None] | None = None,
    model: BaseModel | None = None,
    num_loader_threads: int = 0,
) -> ExpertRecord:
    """Train one expert and return its record; only return the record if it exists.

    Every attempt is counted in the store before it starts. All ranks call this together and read the base; only rank 0
    writes. It may be killed at any line: the next call resumes from the last state.

    Args:
        store, cache: where the base lies and the expert goes, and this node's cache of it.
        base, data, recipe, seed: what makes the expert.
        workers: the workers that share the training.
        progress: called after every step with steps done and loss, in every rank.
        model: the base's model, to train on its device; None: a new one, on the CPU.
        num_loader_threads: threads that decode images ahead.
    Raises:
        DataError, TrainingDivergedError: the task's own fault; another attempt would end the same way.
        BaseMismatchError: the base can't be built.
    """
    workers = workers or WorkerGroup()
    first = workers.rank == 0
    identity = identity_of(base, data, recipe, seed)
    record = find_expert(store, identity) if first else None
    if workers.from_first(int(record is not None)):
        return record or _existing_record(store, identity)
    if first:
        count_attempt(store, identity)
    with (model or BaseModel(base, cache)).borrowed() as clip:
        view = BaseView(clip, data) if first else None  # needs the base, so before training
        result = None
        if open_method(recipe.method).trains:
            result = finetune(
                clip,
                data,
                recipe,
                seed=seed,
                base_features=view.features if view else None,
                state=_state_path(store, cache, identity) if first else None,
                on_progress=progress,
                on_state=lambda step, tensors: _put_state(store, identity, step, tensors),
                workers=workers,
                num_loader_threads=num_loader_threads,
            )
        if view:
            record = _put_trained(store, identity, base, data, view, result, clip)
    workers.from_first(0)  # a barrier: every rank finds the record
    return record or _existing_record(store, identity)


def _existing_record(store: Store, identity: str) -> ExpertRecord:
    record = find_expert(store, identity)
    assert record is not None, "rank 0 saw a record that this rank does not"
    return record


class BaseView:
    """What a task looks like to the base: features of its un-augmented training images, prototypes, and evidence.

    Of very many images a part is looked at (`training.data.look`).
    """

    def __init__(self, clip: Clip, data: TaskData) -> None:
        self.features = image_features(clip, data)
        self.labels = torch.from_numpy(data.look.labels)
        texts = clip.prompt_features(data.classes, data.templates)
        self.prototypes = class_prototypes(self.features, self.labels, texts)
        self.num_classes = len(data.classes)
        self.evidence = measure_evidence(self.features, self.labels, self.num_classes)

    def evidence_beside(self, features: torch.Tensor, temperature: float) -> Evidence:
        """The evidence with what the task looks like to its expert, whose unit features are float32 [N, D]."""
        sums = sum_classes(features, self.labels, self.num_classes)
        return replace(self.evidence, expert=sums, temperature=temperature)

    def evidence_alone(self) -> Evidence:
        """The evidence of a task without an expert."""
        temperature = head_temperature(self.features, self.labels, self.num_classes)
        return replace(self.evidence, temperature=temperature)


def _put_trained(
    store: Store,
    identity: str,
    base: Base,
    data: TaskData,
    view: BaseView,
    result: FinetuneResult | None,
    clip: Clip,
) -> ExpertRecord:
    """Write the weights, then the record that names them; then remove what only an unfinished training needs.

    Args:
        result: of the fine-tuning; None where there was none. `clip` is what it left.
    """
    weights = result.expert if result else None
    held_out = result.held_out if result else None
    if weights is None:
        expert, evidence = None, view.evidence_alone()
    else:
        with ThreadPoolExecutor(1) as pool:  # one waits for the store, the other computes
            putting = pool.submit(_put_tensors, store, identity, "expert", weights)
            evidence = view.evidence_beside(image_features(clip, data), held_out.temperature if held_out else 1.0)
            expert = putting.result()
    record = put_record(store, identity, base, data, view, expert, evidence, _metrics(data, result))
    drop_training_state(store, identity)
    seconds = record.metrics.get("seconds", 0.0)
    logger.info("trained task=%s identity=%s expert=%s s=%.1f", data.name, identity[:12], weights is not None, seconds)
    return record


def put_record(
    store: Store,
    identity: str,
    base: Base,
    data: TaskData,
    view: BaseView,
    expert: BlobRef | None,
    evidence: Evidence,
    metrics: dict[str, float],
) -> ExpertRecord:
    """Write prototypes and evidence, then the record that names them and the weights, which are there already."""
    return put_expert(
        store,
        ExpertRecord(
            identity=identity,
            task=data.name,
            classes=data.classes,
            templates=data.templates,
            base=base.sha256,
            expert=expert,
            prototypes=_put_tensors(store, identity, "prototypes", {"prototypes": view.prototypes}),
            metrics=metrics,
            evidence=_put_tensors(store, identity, "evidence", evidence.tensors()),
            background=data.train.background,
        ),
    )


def _metrics(data: TaskData, result: FinetuneResult | None) -> dict[str, float]:
    """What the record says of the training. Accuracies on held-out images are shares of them."""
    metrics = {"num_train": float(len(data.train))}
    if result:
        metrics |= {"steps": float(result.steps), "seconds": result.seconds}
        if math.isfinite(result.final_loss):
            metrics["final_loss"] = result.final_loss
        for figures in (result.held_out, result.validation):
            metrics |= figures.metrics() if figures else {}
    return metrics


def _put_tensors(store: Store, identity: str, name: str, tensors: Mapping[str, torch.Tensor]) -> BlobRef:
    with scratch_file(store) as path:
        write_tensors(path, tensors)
        return put_expert_file(store, identity, path, name=name)


def _put_state(store: Store, identity: str, step: int, tensors: State) -> None:
    with scratch_file(store) as path:
        write_tensors(path, tensors)
        put_training_state(store, identity, path, step=step)


def _state_path(store: Store, cache: NodeCache, identity: str) -> Path | None:
    state = find_training_state(store, identity)
    if state is None:
        return None
    try:
        return cache.path(state.tensors)
    except DamagedBlobError as error:  # costs the steps that it held and nothing else
        logger.warning("damaged state, training from the start identity=%s: %s", identity[:12], error)
        return None
