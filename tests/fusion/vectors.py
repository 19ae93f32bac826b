"""Task vectors for tests, and a store that holds them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fusion.decouple import decoupled_tensors
from fusion.fuse import ExpertToFuse, fuse_experts
from fusion.store import Store
from fusion.store.node_cache import NodeCache
from fusion.tensors import write_tensors
from fusion.versions.bases import Base, put_base
from fusion.versions.manifest import Manifest

SIGNED = {"name": "signed", "bits": 2}
SHAPES: dict[str, tuple[int, ...]] = {
    "visual.conv.weight": (4, 3, 3, 3),
    "text.proj": (19, 7),
    "bias": (13,),
    "logit_scale": (),
}


def random_base(folder: Path, store: Store, *, seed: int = 0) -> tuple[Base, Path]:
    """A base of normal random tensors and one BatchNorm statistic."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    tensors["bn.running_mean"] = torch.randn(5, generator=generator)
    tensors["bn.num_batches_tracked"] = torch.tensor(7)
    path = folder / f"base-{seed}.safetensors"
    write_tensors(path, tensors)
    return put_base(store, path), path


def random_expert(folder: Path, base: Path, task: str, *, seed: int, sparse: bool = False) -> ExpertToFuse:
    """The base plus a random task vector; with `sparse` only the first rows of a matrix move."""
    from fusion.tensors import TensorFile

    generator = torch.Generator().manual_seed(seed)
    file = TensorFile(base)
    tensors = {}
    for name in file.specs:
        tensor = file.tensor(name).clone()
        if name in SHAPES:
            delta = 0.1 * torch.randn(tensor.shape, generator=generator)
            if sparse and tensor.dim() > 1:
                delta[2:] = 0
            tensor = tensor + delta
        tensors[name] = tensor
    path = folder / f"{task}-{seed}.safetensors"
    write_tensors(path, tensors)
    return ExpertToFuse(task, path)


def cache_of(store: Store, folder: Path) -> NodeCache:
    return NodeCache(store, folder / "cache")


def cosine(first: np.ndarray, second: np.ndarray) -> float:
    return float(first @ second / (np.linalg.norm(first) * np.linalg.norm(second)))


def publish_each(
    folder: Path, store: Store, tasks: Sequence[str], *, mode: Mapping[str, Any] = SIGNED, seed: int = 0
) -> list[Manifest]:
    """One version per task, each with its own random expert."""
    base, path = random_base(folder, store)
    return [
        fuse_experts(
            cache_of(store, folder), base, [random_expert(folder, path, task, seed=seed + i)], mode=mode
        ).manifest
        for i, task in enumerate(tasks)
    ]


def decoupled(store: Store, folder: Path, manifest: Manifest, task: str) -> dict[str, bytes]:
    """Every tensor of a decoupled expert, as bytes."""
    tensors = decoupled_tensors(cache_of(store, folder), manifest, task)
    return {name: tensor.numpy().tobytes() for name, tensor in tensors}
