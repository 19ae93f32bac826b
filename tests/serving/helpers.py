"""A store with a tiny base and experts that differ from it a little, and what asks a service about them."""

from __future__ import annotations

import io
import socket
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image

from fusion.answers.class_sums import sum_classes
from fusion.answers.clip import Clip, build_clip
from fusion.answers.evidence import measure_evidence
from fusion.answers.prototypes import class_prototypes
from fusion.fuse import ExpertToFuse, fuse_experts
from fusion.store import Store
from fusion.store.blobs import new_nonce, put_file, scratch_file
from fusion.store.node_cache import NodeCache
from fusion.tensors import write_tensors
from fusion.versions.bases import Base
from fusion.versions.history import Versions
from fusion.versions.manifest import Manifest
from tests.tiny import COLOURS, SHAPES, picture, tiny_base

TASKS: dict[str, tuple[str, ...]] = {"colours": tuple(COLOURS), "shapes": SHAPES, "pair": ("red", "circle", "tree")}
TEMPLATES = ("a {} picture.", "{}.")


def publish_tasks(
    store: Store,
    tasks: dict[str, tuple[str, ...]] | None = None,
    *,
    seed: int = 0,
    evidence: bool = False,
    heads: Sequence[str] = (),
) -> Manifest:
    """Fuse one expert per task, the base plus noise, in mode `signed`, and return the version's manifest.

    Args:
        evidence: keep evidence of the tasks; without it, versions are answered by the rule `mean`.
        heads: tasks that get no expert, which takes `evidence`.
    """
    newest = Versions(store).newest()
    base = newest.base if newest else tiny_base(store)
    cache = NodeCache(store)
    clip = _clip(base, cache)
    random = np.random.default_rng(seed)
    experts = []
    for number, (name, classes) in enumerate((TASKS if tasks is None else tasks).items()):
        noise = torch.Generator().manual_seed(1000 * seed + number)
        tensors = {
            key: (value + 0.05 * torch.randn(value.shape, generator=noise) if value.is_floating_point() else value)
            for key, value in clip.model.state_dict().items()
        }
        count = 12 if evidence else 2
        pixels = clip.pixels([picture(label, random) for label in classes for _ in range(count)])
        labels = torch.arange(len(classes)).repeat_interleave(count)
        features = clip.image_features(pixels)
        prototypes = class_prototypes(features, labels, clip.class_features(classes, TEMPLATES))
        seen = None
        if evidence:
            own = clip.copy_with(tensors.items()).image_features(pixels)
            kept = measure_evidence(features, labels, len(classes))
            if name not in heads:
                kept = replace(kept, expert=sum_classes(own, labels, len(classes)), temperature=1.5)
            with scratch_file(store) as path:
                write_tensors(path, kept.tensors())
                seen = put_file(store, path, nonce=new_nonce())
        with scratch_file(store) as path:
            write_tensors(path, {"prototypes": prototypes})
            found = put_file(store, path, nonce=new_nonce())
        with scratch_file(store) as path:
            write_tensors(path, {key: value.contiguous() for key, value in tensors.items()})
            weights = put_file(store, path, nonce=new_nonce())
        experts.append(ExpertToFuse(name, None if name in heads else weights, classes, TEMPLATES, found, seen))
    return fuse_experts(cache, base, experts, mode={"name": "signed", "bits": 2}, replace=True).manifest


_clips: dict[str, Clip] = {}


def _clip(base: Base, cache: NodeCache) -> Clip:
    if base.sha256 not in _clips:
        _clips[base.sha256] = build_clip(base, cache.tensors(base.weights))
    return _clips[base.sha256]


def pictures(*names: str, seed: int = 7, size: int = 36) -> list[Image.Image]:
    random = np.random.default_rng(seed)
    return [picture(name, random, size=size) for name in names]


def png(image: Image.Image) -> bytes:
    body = io.BytesIO()
    image.save(body, "PNG")
    return body.getvalue()


def form_of(images: Sequence[Image.Image | bytes]) -> list[tuple[str, tuple[str, bytes, str]]]:
    """What httpx calls `files`: `0.png`, `1.png`, …"""
    bodies = [image if isinstance(image, bytes) else png(image) for image in images]
    return [("image", (f"{i}.png", body, "image/png")) for i, body in enumerate(bodies)]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def error_of(answer: Any) -> str:
    """The detail of a problem document, whose shape is checked on the way."""
    body = answer.json()
    assert set(body) - {"errors"} == {"type", "title", "status", "detail", "instance"}, body
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert body["status"] == answer.status_code
    assert body["instance"] == answer.headers["X-Request-Id"]
    detail: str = body["detail"]
    return detail
