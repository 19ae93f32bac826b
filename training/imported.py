"""An expert that was trained elsewhere, with the images of its task: what training would have written of it."""

from __future__ import annotations

import logging
from pathlib import Path

from fusion.answers.clip import build_clip
from fusion.store import Store
from fusion.store.node_cache import NodeCache
from fusion.tensors import TensorFile, sha256_file
from fusion.versions.bases import Base
from fusion.versions.experts import ExpertRecord, expert_identity, find_expert, put_expert_file
from training.data.task_data import TaskData
from training.expert import BaseView, put_record
from training.finetune import image_features

logger = logging.getLogger(__name__)


def import_expert(
    store: Store, cache: NodeCache, base: Base, data: TaskData, weights: Path, *, device: str = "cpu"
) -> ExpertRecord:
    """Keep an expert with prototypes and evidence of its training images; only return the record if it exists.

    The temperature is 1: it would have to be fitted on images that the expert has not seen, and nobody knows which.
    Peak memory: base and expert in float32, and the features of all training images.

    Args:
        store, cache: where the base lies and the expert goes, and this node's cache of it.
        base, data: what the expert belongs to.
        weights: a full state dict under the base's names, finite.
        device: to encode images on.
    Raises:
        BaseMismatchError: the base can't be built.
        DataError: an image can't be read.
    """
    imported = {"imported": sha256_file(weights)}
    identity = expert_identity(base=base.sha256, data=data.sha256, recipe=imported, seed=0)
    if record := find_expert(store, identity):
        return record
    clip = build_clip(base, cache.tensors(base.weights), device=device)
    view = BaseView(clip, data)
    file = TensorFile(weights)
    own = clip.copy_with((name, file.tensor(name)) for name in file.specs)
    evidence = view.evidence_beside(image_features(own, data), 1.0)
    expert = put_expert_file(store, identity, weights)
    metrics = {"num_train": float(len(data.train))}
    record = put_record(store, identity, base, data, view, expert, evidence, metrics)
    logger.info("imported task=%s identity=%s images=%d", data.name, identity[:12], len(data.train))
    return record
