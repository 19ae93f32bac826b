"""One task from data to a finished expert in the store: found if it is there, resumed if it was begun, else trained."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import torch

from fusion.answers.clip import Clip, build_clip
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
    expert_identity,
    find_expert,
    find_training_state,
    put_expert,
    put_expert_file,
    put_training_state,
)
from training.data import TaskData
from training.finetune import finetune
from training.recipe import Recipe
from training.worker_group import World

logger = logging.getLogger(__name__)

_FEATURE_BATCH = 64


def identity_of(base: Base, data: TaskData, recipe: Recipe, seed: int) -> str:
    """The identity of the expert that these four make."""
    return expert_identity(base=base.sha256, data=data.sha256, recipe=recipe.to_json(), seed=seed)


def train_expert(
    store: Store,
    cache: NodeCache,
    base: Base,
    data: TaskData,
    recipe: Recipe,
    *,
    seed: int,
    world: World | None = None,
    progress: Callable[[int, float], None] | None = None,
    device: str = "cpu",
    num_loader_threads: int = 0,
) -> ExpertRecord:
    """Train one expert, or return the record of it.

    Every attempt is counted in the store before it starts. All ranks call this together and read the base; rank 0 alone
    writes. May be killed at any line: the next call goes on from the last state.

    Args:
        store, cache: where the base lies and the expert goes, and this node's cache of it.
        base, data, recipe, seed: what makes the expert.
        world: the workers that share the training.
        progress: called after every step with steps done and loss, in every rank.
        device: to train on.
        num_loader_threads: threads that decode images ahead.
    Raises:
        DataError, TrainingDivergedError: the task's own fault; another attempt would end alike.
        BaseMismatchError: the base can't be built.
    """
    world = world or World()
    identity = identity_of(base, data, recipe, seed)
    found = find_expert(store, identity) if world.rank == 0 else None
    if world.from_first(int(found is not None)):
        return found or _the_record(store, identity)
    first = world.rank == 0
    if first:
        count_attempt(store, identity)
    clip = build_clip(base, cache.tensors(base.weights), device=device)
    prototypes = _put_prototypes(store, identity, clip, data) if first else None  # needs the base, so before training

    def save(step: int, tensors: dict[str, torch.Tensor]) -> None:
        with scratch_file(store) as path:
            write_tensors(path, tensors)
            put_training_state(store, identity, path, step=step)

    result = finetune(
        clip,
        data,
        recipe,
        seed=seed,
        state=_state_path(store, cache, identity) if first else None,
        on_progress=progress,
        on_state=save,
        world=world,
        num_loader_threads=num_loader_threads,
    )
    if first:
        record = ExpertRecord(
            identity=identity,
            task=data.name,
            classes=data.classes,
            templates=data.templates,
            base=base.sha256,
            expert=_put_weights(store, identity, clip),
            prototypes=prototypes,
            metrics={
                "final_loss": result.final_loss,
                "steps": float(result.steps),
                "seconds": result.seconds,
                "num_train": float(len(data.train)),
            },
        )
        found = put_expert(store, record)
        drop_training_state(store, identity)
        logger.info(
            "expert task=%s identity=%s loss=%.4f s=%.1f", data.name, identity[:12], result.final_loss, result.seconds
        )
    world.from_first(0)  # a barrier: the record is there for every rank
    return found or _the_record(store, identity)


def _the_record(store: Store, identity: str) -> ExpertRecord:
    record = find_expert(store, identity)
    assert record is not None, "rank 0 saw a record that this rank does not"
    return record


def _state_path(store: Store, cache: NodeCache, identity: str) -> Path | None:
    state = find_training_state(store, identity)
    if state is None:
        return None
    try:
        return cache.path(state.tensors)
    except DamagedBlobError as error:  # costs the steps it held, nothing else
        logger.warning("damaged state, training from the start identity=%s: %s", identity[:12], error)
        return None


def _put_weights(store: Store, identity: str, clip: Clip) -> BlobRef:
    """theta_i as a full state dict, buffers included, floats in fp32."""
    tensors = {
        name: tensor.float() if tensor.is_floating_point() else tensor
        for name, tensor in clip.model.state_dict().items()
    }
    with scratch_file(store) as path:
        write_tensors(path, tensors)
        return put_expert_file(store, identity, path)


def _put_prototypes(store: Store, identity: str, clip: Clip, data: TaskData) -> BlobRef:
    """Prototypes of the task's classes from un-augmented training images and all templates, float32 [C, D]."""
    text_features = clip.prompt_features(data.classes, data.templates)
    images = data.train
    batches = torch.arange(len(images)).split(_FEATURE_BATCH)
    features = [
        clip.image_features(clip.pixels([images.image(index) for index in batch.tolist()])) for batch in batches
    ]
    prototypes = class_prototypes(torch.cat(features), torch.from_numpy(images.labels), text_features)
    with scratch_file(store) as path:
        write_tensors(path, {"prototypes": prototypes})
        return put_expert_file(store, identity, path, name="prototypes")
