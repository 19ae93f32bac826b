"""Other texts that mean a task's classes: they may change after the task was fused, and nothing is trained for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from fusion.store.blobs import BlobRef, get_json, put_json
from fusion.versions.history import Versions, nothing_published
from fusion.versions.manifest import Manifest, unknown_task
from fusion.versions.publish import Draft, publish
from fusion.versions.state import TaskRecord


def set_aliases(
    versions: Versions, task: str, aliases: Mapping[str, Sequence[str]], *, created: dict[str, Any] | None = None
) -> Manifest:
    """Publish the newest version with these aliases for a task's classes; return the newest if it has them already.

    Its weights, prototypes and evidence stay; only its record is written anew.

    Raises: UnknownVersionError, UnknownTaskError.
    """
    wanted = {name: tuple(others) for name, others in aliases.items()}
    written: list[BlobRef] = []

    def build(parent: Manifest | None, nonce: str) -> Draft | None:
        written.clear()
        if parent is None:
            raise nothing_published(versions.store)
        if task not in parent.state.tasks:
            raise unknown_task(task, parent.version, parent.state.tasks)
        entry = parent.state.tasks[task]
        record = TaskRecord.from_json(get_json(versions.store, entry.record))
        if dict(record.aliases) == wanted:
            return None
        ref = put_json(versions.store, replace(record, aliases=wanted).to_json(), nonce=nonce)
        written.append(ref)
        tasks = {**parent.state.tasks, task: replace(entry, record=ref)}
        return Draft(parent.base, dict(parent.mode), replace(parent.state, tasks=tasks), parent.removed)

    why = {"kind": "aliases", "why": f"aliases of {task}", **(created or {})}
    manifest = publish(versions, build, written=lambda: written, created=why)
    assert manifest is not None, "an empty store was refused"
    return manifest
