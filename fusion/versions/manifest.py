"""Manifests: one immutable JSON object per version. Writing it, and nothing else, commits the version."""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from fusion.errors import DamagedBlobError, FormatError, TaskNameError, UnknownTaskError
from fusion.store.blobs import canonical_json
from fusion.versions.bases import Base
from fusion.versions.state import FusedState

FORMAT = "condu/2"
_OLDER_FORMATS = ("condu/1",)
_TASK_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


@dataclass(frozen=True)
class Parent:
    """The version that another one was built on: its number, and the sha256 of its manifest."""

    version: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """A published version.

    Attributes:
        version: from 1, without gaps.
        parent: the version it was built on, None for the first.
        nonce: of the publisher's attempt; tells its own success, whose reply was lost, from a lost race.
        created: what published it (`kind`), when (ISO 8601, UTC), by whom, from which configuration, with which
            packages, and why.
        base: the one base that all versions of a store share.
        mode: the mode's name and settings, as `Mode.settings` gives them.
        state: the tasks and what they share.
        removed: tasks that were removed on purpose, so that a run does not bring them back.
        last_gc: the newest version that is a garbage collection, 0 for none. A publisher may rely on blobs that it
            wrote itself only if it built on a version >= this.
        oldest_kept: older versions may be gone, unless pinned.
        pinned: versions that gc keeps whatever their age.
        sha256: of the canonical JSON of everything else.
    """

    version: int
    parent: Parent | None
    nonce: str
    created: Mapping[str, Any]
    base: Base
    mode: Mapping[str, Any]
    state: FusedState
    removed: tuple[str, ...] = ()
    last_gc: int = 0
    oldest_kept: int = 1
    pinned: tuple[int, ...] = ()
    sha256: str = field(default="", compare=False)

    def keeps(self, number: int) -> bool:
        """Whether this manifest keeps a version: gc has not deleted it, and none that is under way will."""
        return self.oldest_kept <= number <= self.version or number in self.pinned

    @property
    def is_gc(self) -> bool:
        """Whether a garbage collection published this version: its state is its parent's."""
        return self.last_gc == self.version

    def _content(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "version": self.version,
            "parent": asdict(self.parent) if self.parent else None,
            "nonce": self.nonce,
            "created": dict(self.created),
            "base": self.base.to_json(),
            "mode": dict(self.mode),
            "state": self.state.to_json(),
            "removed": list(self.removed),
            "last_gc": self.last_gc,
            "oldest_kept": self.oldest_kept,
            "pinned": list(self.pinned),
        }

    def sealed(self) -> Manifest:
        """The same manifest with its sha256 filled in."""
        return replace(self, sha256=hashlib.sha256(canonical_json(self._content())).hexdigest())

    def to_bytes(self) -> bytes:
        assert self.sha256, "seal a manifest before writing it"
        return canonical_json({**self._content(), "sha256": self.sha256})

    @classmethod
    def from_bytes(cls, body: bytes, where: str) -> Manifest:
        """Parse and verify. Raises `DamagedBlobError` (bytes changed) or `FormatError` (another format)."""
        try:
            value = json.loads(body)
            sha256 = value.pop("sha256")
        except (ValueError, KeyError, AttributeError) as error:
            raise DamagedBlobError(
                f"{where} is damaged: it is not a manifest ({error!r}). Restore it from a backup"
            ) from error
        if hashlib.sha256(canonical_json(value)).hexdigest() != sha256:
            raise DamagedBlobError(
                f"{where} is damaged: its content does not hash to its own sha256. Restore it from a backup"
            )
        if value.get("format") != FORMAT:
            raise FormatError(_other_format(where, value.get("format")))
        try:
            return cls(
                version=value["version"],
                parent=Parent(**value["parent"]) if value["parent"] else None,
                nonce=value["nonce"],
                created=value["created"],
                base=Base.from_json(value["base"]),
                mode=value["mode"],
                state=FusedState.from_json(value["state"]),
                removed=tuple(value["removed"]),
                last_gc=value["last_gc"],
                oldest_kept=value["oldest_kept"],
                pinned=tuple(value["pinned"]),
                sha256=sha256,
            )
        except KeyError as error:
            raise FormatError(f"{where} lacks {error}") from error
        except TypeError as error:
            raise FormatError(f"{where} has a field of another type: {error}") from error


def _other_format(where: str, format: object) -> str:
    said = f"{where} has format {format!r}, this release reads {FORMAT!r}: "
    if format in _OLDER_FORMATS:
        return said + (
            "it was written by a development version of condu, before the first release. Fuse the experts again into "
            "another store: `condu fuse` accepts the files under experts/ of the old one"
        )
    return said + "upgrade condu"


def unknown_task(task: str, version: int, tasks: Collection[str]) -> UnknownTaskError:
    """The error for a task that a version lacks, with the nearest names that it has."""
    near = difflib.get_close_matches(task, tasks, n=3) or list(tasks)[:5]
    hint = f": did you mean {', '.join(near)}?" if near else ": it has none yet"
    return UnknownTaskError(f"version {version} has no task {task!r}{hint}")


def check_task_name(name: str) -> str:
    """Return a valid name unchanged: `[a-z0-9][a-z0-9._-]{0,63}`. Raises `TaskNameError`."""
    if not isinstance(name, str) or not _TASK_NAME.fullmatch(name):
        raise TaskNameError(
            f"task name {name!r} is ill-formed: it must be 1 to 64 characters of a-z, 0-9, '.', '_' and '-', and start "
            "with a letter or digit"
        )
    return name
