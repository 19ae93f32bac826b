"""What a run leaves in the store for people who look at the service: figures of each task, and sample images if asked.

No version depends on it and none names it. A showcase is one immutable object; the newest counts, and whoever writes
one deletes those before it.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from fusion.errors import BlobNotFoundError, DamagedBlobError, FormatError
from fusion.store import Store
from fusion.store.blobs import canonical_json, get_plain_json, new_nonce

_PREFIX = "showcase/"
_FORMAT = "condu-showcase/1"


@dataclass(frozen=True)
class Sample:
    """A test image. `encoded` is a file of this media type, such as `image/png`; `label` is its class."""

    label: str
    media_type: str
    encoded: bytes


@dataclass(frozen=True)
class Shown:
    """What is shown of a task.

    Attributes:
        expert_sha256: of the expert that was measured, as in the task's record.
        images: test images that were measured.
        base, answered: accuracy in percent of the bare base, and of the service with the task named.
        samples: test images.
    """

    expert_sha256: str
    images: int
    base: float
    answered: float
    samples: tuple[Sample, ...] = ()


@dataclass(frozen=True)
class Showcase:
    """Figures as of a version.

    Attributes:
        version: the one that was measured.
        tasks: by name. A task may have been removed or replaced since.
    """

    version: int
    tasks: Mapping[str, Shown] = field(default_factory=dict)


def read_showcase(store: Store) -> Showcase | None:
    """The newest showcase; None: there is none. Raises `FormatError`, `DamagedBlobError`, and the store's errors."""
    for _ in range(2):
        keys = _keys(store)
        if not keys:
            return None
        try:
            return _parse(get_plain_json(store, keys[-1]), keys[-1])
        except BlobNotFoundError:
            continue  # a newer one took its place after the listing
    return None


def show_in(store: Store, showcase: Showcase) -> Showcase:
    """Write a showcase in place of the newest, whose other tasks stay if it can be read. Returns what is shown now."""
    try:
        before = read_showcase(store)
    except (DamagedBlobError, FormatError):  # the run that writes this one can measure again what it held
        before = None
    merged = replace(showcase, tasks={**(before.tasks if before else {}), **showcase.tasks})
    older = _keys(store)
    store.put_if_absent(f"{_PREFIX}{merged.version:08d}-{new_nonce()}.json", canonical_json(_to_json(merged)))
    for key in older:
        store.delete(key)
    return merged


def _keys(store: Store) -> list[str]:
    """By version, those of one version by when they were written."""
    found = sorted(store.list(_PREFIX), key=lambda info: (info.key.partition("-")[0], info.modified))
    return [info.key for info in found]


def _to_json(showcase: Showcase) -> dict[str, Any]:
    tasks = {
        name: {
            "expert_sha256": shown.expert_sha256,
            "images": shown.images,
            "base": shown.base,
            "answered": shown.answered,
            "samples": [
                {"label": one.label, "media_type": one.media_type, "data": base64.b64encode(one.encoded).decode()}
                for one in shown.samples
            ],
        }
        for name, shown in showcase.tasks.items()
    }
    return {"format": _FORMAT, "version": showcase.version, "tasks": tasks}


def _parse(value: Any, key: str) -> Showcase:
    try:
        if value["format"] != _FORMAT:
            raise FormatError(f"{key} has format {value['format']!r}, this condu reads {_FORMAT!r}")
        return Showcase(int(value["version"]), {name: _shown(one) for name, one in value["tasks"].items()})
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise FormatError(f"{key} is not a showcase: {error!r}") from error


def _shown(value: Any) -> Shown:
    samples = tuple(
        Sample(str(one["label"]), str(one["media_type"]), base64.b64decode(one["data"], validate=True))
        for one in value["samples"]
    )
    return Shown(
        str(value["expert_sha256"]), int(value["images"]), float(value["base"]), float(value["answered"]), samples
    )
