"""Changes to a store that fuse nothing: rolling back, removing a task, pinning. Each publishes one version.

No trigger, plane or vector is written or rewritten by any of them: the new version names what older ones name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fusion.versions.history import Versions, gone, nothing_published
from fusion.versions.manifest import Manifest, unknown_task
from fusion.versions.publish import Draft, publish


@dataclass(frozen=True)
class Edit:
    """The outcome of a change: the version that holds it, and whether this call published it."""

    manifest: Manifest
    changed: bool


def rollback(versions: Versions, number: int, *, created: dict[str, Any] | None = None) -> Edit:
    """Publish the state of an old version as a new one. Does nothing if the newest already has that state.

    Tasks of the old state are taken off `removed`. Tasks that it lacks are dropped but not added to `removed`, so a run
    of their configuration fuses them again.

    Raises: UnknownVersionError; VersionGoneError: gc has taken the version, or is about to (below `oldest_kept`).
    """

    def build(parent: Manifest) -> Draft | None:
        old = kept_version(versions, parent, number)
        removed = tuple(task for task in parent.removed if task not in old.state.tasks)
        if (old.base, dict(old.mode), old.state) == (parent.base, dict(parent.mode), parent.state):
            return None
        return Draft(old.base, dict(old.mode), old.state, removed)

    return _edit(versions, build, {"kind": "rollback", "why": f"roll back to version {number}", **(created or {})})


def remove_task(versions: Versions, task: str, *, created: dict[str, Any] | None = None) -> Edit:
    """Publish the newest version without a task; every other task decouples bit for bit as before.

    The name goes on `removed`, so that a run does not bring it back. See `what_stays_of` for what is left of the task.

    Raises: UnknownTaskError.
    """

    def build(parent: Manifest) -> Draft | None:
        if task not in parent.state.tasks:
            if task in parent.removed:
                return None
            raise unknown_task(task, parent.version, parent.state.tasks)
        return Draft(parent.base, dict(parent.mode), parent.state.without(task), (*parent.removed, task))

    return _edit(versions, build, {"kind": "remove-task", "why": f"remove task {task}", **(created or {})})


def pin(versions: Versions, number: int, *, created: dict[str, Any] | None = None) -> Edit:
    """Have gc keep a version whatever its age. Raises UnknownVersionError, VersionGoneError."""

    def build(parent: Manifest) -> Draft | None:
        kept_version(versions, parent, number)
        if number in parent.pinned:
            return None
        return _same_state(parent, pinned=tuple(sorted((*parent.pinned, number))))

    return _edit(versions, build, {"kind": "pin", "why": f"pin version {number}", **(created or {})})


def unpin(versions: Versions, number: int, *, created: dict[str, Any] | None = None) -> Edit:
    """Let gc delete a version again as soon as it is old enough. Raises UnknownVersionError."""

    def build(parent: Manifest) -> Draft | None:
        if not 0 < number <= parent.version:
            versions.read(number)  # raises the error for a number that was never published
        if number not in parent.pinned:
            return None
        return _same_state(parent, pinned=tuple(n for n in parent.pinned if n != number))

    return _edit(versions, build, {"kind": "unpin", "why": f"unpin version {number}", **(created or {})})


def kept_version(versions: Versions, newest: Manifest, number: int) -> Manifest:
    """A version that the newest one keeps. Raises UnknownVersionError, VersionGoneError.

    Below `oldest_kept` the manifest may still be there for a moment. It counts as gone: a gc that is under way deletes
    its blobs.
    """
    if 0 < number < newest.oldest_kept and number not in newest.pinned:
        raise gone(versions.store, number, [n for n in versions.all_numbers() if newest.keeps(n)])
    return versions.read(number)


def what_stays_of(task: str, traces: str | None) -> str:
    """What a store still holds of a removed task, for whoever removed it; `traces` in the mode's words."""
    said = f"{task} no longer answers; the other tasks answer exactly as before. "
    older = "older versions hold the task until `condu versions gc` deletes them"
    if traces is None:
        return f"{said}Nothing of its training is left in what they share; {older}"
    return (
        f"{said}What is left of its training: {traces}; {older}. "
        "`condu fuse --from-archive` rebuilds what is shared from the experts of the tasks that are left"
    )


def _edit(versions: Versions, build: Callable[[Manifest], Draft | None], created: dict[str, Any]) -> Edit:
    changed = False

    def draft(parent: Manifest | None, nonce: str) -> Draft | None:
        nonlocal changed
        if parent is None:
            raise nothing_published(versions.store)
        made = build(parent)
        changed = made is not None
        return made

    manifest = publish(versions, draft, created=created)
    assert manifest is not None, "an empty store was refused"
    return Edit(manifest, changed)


def _same_state(parent: Manifest, *, pinned: tuple[int, ...]) -> Draft:
    return Draft(parent.base, dict(parent.mode), parent.state, parent.removed, pinned=pinned)
