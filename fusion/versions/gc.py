"""Garbage collection: deletes old versions, and every blob that no kept version names.

It is a publish. Blobs are listed first, then the next version is committed (with the same state, and its own number as
`last_gc`), and only blobs on that list are ever deleted. So a publisher that wrote blobs in the meantime has lost its
commit to this one: it reads the newest version and writes its blobs again under a fresh nonce. Clocks decide what is
worth keeping, never what is safe to delete.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fusion.errors import BlobNotFoundError, ConduError, ConfigError, UnknownVersionError, VersionGoneError
from fusion.store import ObjectInfo, Store
from fusion.store.blobs import BlobRef
from fusion.versions.gc_experts import spent_experts
from fusion.versions.history import Versions, manifest_key, nothing_published, spans
from fusion.versions.log_files import files_over
from fusion.versions.manifest import Manifest
from fusion.versions.publish import Draft, publish
from fusion.versions.references import read_manifests, record_refs, refs_of, whole_records

_DAY_S = 86400.0
_DELETE_THREADS = 16
_SCRATCH_IS_DEAD_AFTER_S = _DAY_S


@dataclass(frozen=True)
class Policy:
    """What is kept: the newest versions by number and by age, and those that are pinned.

    Attributes:
        keep: number of newest versions to keep, not counting garbage collections.
        keep_days: keep versions younger than this.
        experts: also delete what finished trainings left under `experts/` (see `fusion.versions.gc_experts`).
    """

    keep: int = 20
    keep_days: float = 7.0
    experts: bool = False

    def __post_init__(self) -> None:
        if self.keep < 1:
            raise ConfigError(f"--keep {self.keep}: it must be 1 or more, because the newest version is always kept")
        if not self.keep_days >= 0:
            raise ConfigError(f"--keep-days {self.keep_days:g}: it must be 0 or more")


@dataclass(frozen=True)
class Collection:
    """What is deleted, or was.

    Attributes:
        version: the version that the collection published; None if there was nothing to publish.
        oldest_kept: all versions below it are gone, except pinned ones.
        versions: numbers of the deleted versions.
        manifests, blobs, experts: the deleted objects.
        log: the deleted files of request logs, whose days are over.
        scratch: the deleted files of killed writers in a local store's `tmp/`.
    """

    version: int | None
    oldest_kept: int
    versions: tuple[int, ...]
    manifests: tuple[ObjectInfo, ...]
    blobs: tuple[ObjectInfo, ...]
    experts: tuple[ObjectInfo, ...]
    log: tuple[ObjectInfo, ...]
    scratch: tuple[Path, ...]

    @property
    def bytes(self) -> int:
        """Size of the deleted objects."""
        return sum(info.bytes for info in (*self.manifests, *self.blobs, *self.experts, *self.log))


def collect(
    versions: Versions, policy: Policy | None = None, *, dry_run: bool = False, created: dict[str, Any] | None = None
) -> Collection:
    """Collect garbage, or with `dry_run` report what would be deleted.

    Nothing is published unless a version or a blob is deleted.

    Raises:
        UnknownVersionError: nothing was published yet.
        DamagedBlobError, BlobNotFoundError, FormatError: a kept manifest or a record can't be read, so it is not known
            what it names. Nothing was deleted.
    """
    policy = policy or Policy()
    plan: Collection | None = None

    def build(parent: Manifest | None, nonce: str) -> Draft | None:
        nonlocal plan
        if parent is None:
            raise nothing_published(versions.store)
        plan = _plan(versions.store, parent, policy)
        if not (plan.manifests or plan.blobs):
            return None
        state, mode = parent.state, dict(parent.mode)
        return Draft(parent.base, mode, state, parent.removed, oldest_kept=plan.oldest_kept, is_gc=True)

    if dry_run:
        build(versions.newest(), "")
        assert plan is not None, "`build` makes one, or raises"
        return plan
    why = f"gc: keep {policy.keep} versions and {policy.keep_days:g} days"
    newest = publish(versions, build, created={"kind": "gc", "why": why, **(created or {})})
    assert plan is not None, "`build` makes one, or raises"
    assert newest is not None, "an empty store was refused"
    # From here on no new version can name what the plan deletes: every publisher that built on an older version has
    # lost its commit. Manifests first: nobody may find a version that has lost some of its blobs.
    _delete(versions.store, plan.manifests)
    _delete(versions.store, (*plan.blobs, *plan.experts, *plan.log))
    for path in plan.scratch:
        path.unlink(missing_ok=True)
    return replace(plan, version=newest.version) if plan.manifests or plan.blobs else plan


def _plan(store: Store, parent: Manifest, policy: Policy) -> Collection:
    blobs = list(store.list("blobs/"))  # before the commit, so that nothing written after it is on the list
    versions = Versions(store)
    listed = {number: info for number, info in versions.listed().items() if number <= parent.version}
    oldest_kept, named = _kept(versions, parent, listed, policy)
    gone = {n: info for n, info in listed.items() if n < oldest_kept and n not in parent.pinned}
    return Collection(
        version=None,
        oldest_kept=oldest_kept,
        versions=tuple(gone),
        manifests=tuple(gone.values()),
        blobs=tuple(info for info in blobs if info.key not in named),
        experts=tuple(spent_experts(store, parent, named)) if policy.experts else (),
        log=tuple(files_over(store, datetime.now(UTC))),
        scratch=tuple(store.stale_scratch(_SCRATCH_IS_DEAD_AFTER_S)),
    )


def _kept(versions: Versions, parent: Manifest, listed: dict[int, ObjectInfo], policy: Policy) -> tuple[int, set[str]]:
    """The lowest number from which on all versions are kept, and the keys of everything that kept versions name."""
    born_after = time.time() - policy.keep_days * _DAY_S
    young = [n for n, info in listed.items() if n >= parent.oldest_kept and info.modified > born_after]
    row_by_age = min(young, default=parent.version)
    oldest_kept, acts = parent.version, 0
    named: set[BlobRef] = set()
    records: set[BlobRef] = set()

    def keep(number: int, found: Manifest | ConduError) -> Manifest:
        manifest = _readable(versions.store, number, found)
        named.update((manifest.base.weights, *manifest.state.blobs()))
        records.update(record_refs(manifest))
        return manifest

    for number, found in read_manifests(versions, range(parent.version, parent.oldest_kept - 1, -1)):
        if acts >= policy.keep and number < row_by_age:
            break
        acts += not keep(number, found).is_gc
        oldest_kept = number
    for number, found in read_manifests(versions, (n for n in parent.pinned if n < oldest_kept)):
        keep(number, found)
    for record in whole_records(versions.store, records).values():
        named.update(refs_of(record))
    return oldest_kept, {ref.key for ref in named}


def _readable(store: Store, number: int, found: Manifest | ConduError) -> Manifest:
    if isinstance(found, Manifest):
        return found
    if isinstance(found, UnknownVersionError | VersionGoneError):
        raise BlobNotFoundError(
            f"{store.url}/{manifest_key(number)} should be kept and is missing: it is not known what it named, so "
            "nothing was deleted. Restore it from a backup, or collect past it with a smaller --keep and --keep-days"
        ) from found
    raise found


def _delete(store: Store, infos: Iterable[ObjectInfo]) -> None:
    with ThreadPoolExecutor(_DELETE_THREADS) as pool:
        for _ in pool.map(lambda info: store.delete(info.key), infos):
            pass


def in_words(found: Collection) -> str:
    """What is deleted, or was: `versions 1-4, 12 blobs` and so on."""
    parts = [f"versions {spans(found.versions)}"] if found.versions else []
    named = (found.blobs, "blob"), (found.experts, "object"), (found.log, "log file"), (found.scratch, "temporary file")
    for infos, name in named:
        where = " under experts/" if infos is found.experts else ""
        if infos:
            parts.append(f"{len(infos)} {name}{'s' if len(infos) > 1 else ''}{where}")
    return ", ".join(parts) or "nothing"
