"""A store with a tiny CLIP and a few tasks that really answer: each expert is the base plus a little noise."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from fusion.answers.clip import Clip, build_clip
from fusion.answers.prototypes import class_prototypes
from fusion.fuse import ExpertToFuse, fuse_experts
from fusion.store import Store
from fusion.store.node_cache import NodeCache
from fusion.tensors import write_tensors
from fusion.versions.bases import Base
from fusion.versions.experts import put_expert_file
from fusion.versions.manifest import Manifest
from tests.tiny import tiny_base

TASKS = {"colours": ("red", "green", "blue"), "shapes": ("circle", "square"), "sizes": ("small", "large", "huge")}
TEMPLATES = ("a {} thing.", "{}.")
SIGNED = {"name": "signed", "bits": 2}


def make_expert(store: Store, cache: NodeCache, base: Base, task: str, folder: Path, *, seed: int) -> ExpertToFuse:
    """An expert in the store: base plus noise, prototypes from random images."""
    clip = build_clip(base, cache.tensors(base.weights))
    generator = torch.Generator().manual_seed(seed)
    weights = {
        name: tensor + 0.05 * torch.randn(tensor.shape, generator=generator) if tensor.is_floating_point() else tensor
        for name, tensor in clip.model.state_dict().items()
    }
    path, protos = folder / f"{task}-{seed}.safetensors", folder / f"{task}-{seed}-prototypes.safetensors"
    write_tensors(path, {name: tensor.contiguous() for name, tensor in weights.items()})
    classes = TASKS[task]
    pixels = torch.randn(4 * len(classes), 3, *clip.image_size, generator=generator)
    labels = torch.arange(len(classes)).repeat(4)
    prototypes = class_prototypes(clip.image_features(pixels), labels, clip.class_features(classes, TEMPLATES))
    write_tensors(protos, {"prototypes": prototypes})
    return ExpertToFuse(
        task=task,
        weights=put_expert_file(store, f"{task}-{seed}", path),
        classes=classes,
        templates=TEMPLATES,
        prototypes=put_expert_file(store, f"{task}-{seed}", protos, name="prototypes"),
    )


def publish_tasks(
    store: Store, folder: Path, tasks: Sequence[str] = tuple(TASKS), *, mode: dict[str, object] = SIGNED, seed: int = 1
) -> Manifest:
    """One version per task."""
    cache = NodeCache(store, folder / "cache")
    base = tiny_base(store)
    for k, task in enumerate(tasks):
        expert = make_expert(store, cache, base, task, folder, seed=seed + k)
        manifest = fuse_experts(cache, base, [expert], mode=mode).manifest
    return manifest


def plain_clip(store: Store, folder: Path, manifest: Manifest) -> Clip:
    """The base's model."""
    cache = NodeCache(store, folder / "cache")
    return build_clip(manifest.base, cache.tensors(manifest.base.weights))
