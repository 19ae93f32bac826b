"""Stores for load tests: a base, and any number of experts that differ from it along a few directions.

A handful of experts is really fused, and every further task is one of them under a name of its own: to a service it is
another expert, with another key, to be read, rebuilt and kept apart. Every task has evidence of its own, in a region
of its own, so that an image is routed to one task as real ones are.
"""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import torch
from PIL import Image

from fusion.answers.class_sums import sum_classes
from fusion.answers.clip import Clip, build_clip, describe_architecture
from fusion.answers.evidence import measure_evidence
from fusion.answers.prototypes import class_prototypes
from fusion.fuse import ExpertToFuse, fuse_experts
from fusion.store import Store
from fusion.store.blobs import BlobRef, get_json, new_nonce, put_file, put_json, scratch_file
from fusion.store.node_cache import NodeCache
from fusion.tensors import write_tensors
from fusion.versions.bases import Base, put_base
from fusion.versions.history import Versions
from fusion.versions.manifest import Manifest
from fusion.versions.publish import Draft, publish
from fusion.versions.state import TaskRecord

DEMO = Path(__file__).parents[1] / "demo"
TEMPLATES = ("a photo of a {}.",)
_NUM_CLASSES, _IMAGES_PER_CLASS = 8, 6
_NUM_DIRECTIONS, _STRENGTH = 4, 0.02
_APART = 0.6
_DEMO_TASKS = 8
_MANY_ROWS = 8192
"""A table of more rows, such as that of the tokens, stays as it is: a task uses few of them."""
_FUSED = 2


def demo_images(count: int) -> list[Image.Image]:
    """Test images of the demo's tasks in turn, RGB."""
    found: list[Image.Image] = []
    for path in sorted((DEMO / "tasks").glob("*/test.parquet")):
        column = pq.read_table(path, columns=["image"])["image"]
        for row in column.slice(0, -(-count // _DEMO_TASKS)).to_pylist():
            found.append(Image.open(io.BytesIO(row if isinstance(row, bytes) else row["bytes"])).convert("RGB"))
    return found[:count]


def png(image: Image.Image) -> bytes:
    body = io.BytesIO()
    image.save(body, "PNG")
    return body.getvalue()


def put_named_base(store: Store, name: str, folder: Path) -> Base:
    """The demo's base (`demo`), or an open_clip architecture with random weights."""
    if name == "demo":
        cfg = json.loads((DEMO / "base" / "condu-tiny.json").read_text())
        return put_base(store, DEMO / "base" / "condu-tiny.safetensors", architecture="condu-tiny", **cfg)
    architecture, model_cfg, preprocess_cfg = describe_architecture(name)
    described = Base(BlobRef("", "", 0), architecture, model_cfg, preprocess_cfg)
    torch.manual_seed(0)
    path = folder / "base.safetensors"
    write_tensors(
        path, {key: value.contiguous() for key, value in build_clip(described, None).model.state_dict().items()}
    )
    base = put_base(store, path, architecture=architecture, model_cfg=model_cfg, preprocess_cfg=preprocess_cfg)
    path.unlink()
    return base


def publish_tasks(store: Store, base: Base, num_tasks: int) -> Manifest:
    """Publish a version with tasks `task-000`, … in mode `lowrank`, each with classes, prototypes and evidence."""
    cache = NodeCache(store)
    clip = build_clip(base, cache.tensors(base.weights))
    images = demo_images(_DEMO_TASKS * _NUM_CLASSES * _IMAGES_PER_CLASS)
    features = clip.image_features(clip.pixels(images))
    for number in range(min(_FUSED, num_tasks)):
        expert = _expert(store, clip, features, number)
        fuse_experts(cache, base, [expert], mode={"name": "lowrank"})
    return _with_namesakes(store, features, num_tasks)


def _labels() -> torch.Tensor:
    return torch.arange(_NUM_CLASSES).repeat_interleave(_IMAGES_PER_CLASS)


def _own_features(features: torch.Tensor, number: int) -> torch.Tensor:
    """What a task's images look like to the base: those of one of the demo's, moved away but for the first."""
    noise = torch.Generator().manual_seed(number)
    direction = torch.nn.functional.normalize(torch.randn(features.shape[1], generator=noise), dim=0)
    far = _APART if number >= _DEMO_TASKS else 0.0
    return torch.nn.functional.normalize(features.chunk(_DEMO_TASKS)[number % _DEMO_TASKS] + far * direction, dim=-1)


def _put_evidence(store: Store, features: torch.Tensor, number: int) -> BlobRef:
    own, labels = _own_features(features, number), _labels()
    sums = sum_classes(own, labels, _NUM_CLASSES)
    return _put(store, replace(measure_evidence(own, labels, _NUM_CLASSES), expert=sums, temperature=1.5).tensors())


def _expert(store: Store, clip: Clip, features: torch.Tensor, number: int) -> ExpertToFuse:
    noise = torch.Generator().manual_seed(number)
    classes = tuple(f"thing {number} {c}" for c in range(_NUM_CLASSES))
    texts = clip.class_features(classes, TEMPLATES)
    prototypes = class_prototypes(_own_features(features, number), _labels(), texts)
    moved = {name: _moved(value, noise) for name, value in clip.model.state_dict().items()}
    return ExpertToFuse(
        f"task-{number:03d}",
        _put(store, moved),
        classes,
        TEMPLATES,
        _put(store, {"prototypes": prototypes}),
        _put_evidence(store, features, number),
    )


def _moved(value: torch.Tensor, noise: torch.Generator) -> torch.Tensor:
    """A tensor moved along a few random directions, by a small share of its own size."""
    if not value.is_floating_point() or value.numel() < 2:
        return value.contiguous()
    matrix = value.reshape(len(value), -1)
    spread = _STRENGTH * value.float().std()
    if value.dim() < 2:
        return (value + 0.1 * spread * torch.randn(value.shape, generator=noise)).contiguous()
    if min(matrix.shape) <= _NUM_DIRECTIONS or len(matrix) > _MANY_ROWS:
        return value.contiguous()
    left = torch.randn(len(matrix), _NUM_DIRECTIONS, generator=noise)
    right = torch.randn(_NUM_DIRECTIONS, matrix.shape[1], generator=noise)
    return (value + (spread / _NUM_DIRECTIONS**0.5) * (left @ right).reshape(value.shape)).contiguous()


def _put(store: Store, tensors: dict[str, torch.Tensor]) -> BlobRef:
    with scratch_file(store) as path:
        write_tensors(path, tensors)
        return put_file(store, path, nonce=new_nonce())


def _with_namesakes(store: Store, features: torch.Tensor, num_tasks: int) -> Manifest:
    """Publish a version in which the fused tasks have namesakes, until there are `num_tasks`."""

    def build(parent: Manifest | None, nonce: str) -> Draft | None:
        assert parent is not None, "experts were fused"
        tasks, known = dict(parent.state.tasks), list(parent.state.tasks.values())
        for number in range(len(tasks), num_tasks):
            entry = known[number % len(known)]
            record = TaskRecord.from_json(get_json(store, entry.record))
            name = f"task-{number:03d}"
            classes = tuple(f"thing {number} {c}" for c in range(len(record.classes)))
            own = replace(record, task=name, classes=classes, evidence=_put_evidence(store, features, number))
            ref = put_json(store, own.to_json(), nonce=nonce)
            tasks[name] = replace(entry, record=ref, session=number + 1)
        if len(tasks) == len(parent.state.tasks):
            return None
        return Draft(parent.base, dict(parent.mode), replace(parent.state, tasks=tasks, session=len(tasks)))

    manifest = publish(Versions(store), build, created={"kind": "benchmark", "why": "namesakes"})
    assert manifest is not None
    return manifest
