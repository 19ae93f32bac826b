"""Publishing: the commit rule, from a draft of the next version to its manifest.

A publisher writes its blobs, checks that every blob it names exists, creates the next manifest by put-if-absent, and
makes sure that the number is a new one. The loser of a race reads the winner's version and builds on top of it, under a
fresh nonce. Described in docs/format.md, model-checked in tests/fusion/versions/protocol_model.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from fusion.errors import StateDictError, StoreError, UnknownVersionError, VersionGoneError
from fusion.store import Store
from fusion.store.blobs import BlobRef, new_nonce
from fusion.store.probe import prove_conditional_writes
from fusion.versions.bases import Base
from fusion.versions.history import Commit, Versions
from fusion.versions.manifest import Manifest, Parent
from fusion.versions.outage import waits_for_the_store
from fusion.versions.provenance import provenance
from fusion.versions.state import FusedState

_HEAD_THREADS = 16
_GONE = (StoreError, StateDictError, UnknownVersionError, VersionGoneError)
"""The errors that a publisher may meet when gc deletes a blob or a version that it is reading."""


@dataclass(frozen=True)
class Draft:
    """The parts of the next version that a publisher chooses; the rest of its manifest follows from its parent.

    Attributes:
        oldest_kept, pinned: None: the parent's.
        is_gc: the version is a garbage collection: its own number becomes `last_gc`.
    """

    base: Base
    mode: dict[str, Any]
    state: FusedState
    removed: tuple[str, ...] = ()
    oldest_kept: int | None = None
    pinned: tuple[int, ...] | None = None
    is_gc: bool = False


@waits_for_the_store
def publish(
    versions: Versions,
    build: Callable[[Manifest | None, str], Draft | None],
    *,
    written: Callable[[], Iterable[BlobRef]] = tuple,
    created: dict[str, Any],
) -> Manifest | None:
    """Publish one version, and rebuild it whenever another publisher was first.

    Args:
        build: makes the next state from the newest version (None: there is none) and a nonce, and writes blobs under
            that nonce; it returns None if nothing needs to change. It may run again after its version was published
            and at once collected, so it must treat work that is already done as nothing to do.
        written: the blobs that the last `build` wrote.
        created: `kind` and `why` of the publish, and its configuration; time, host and packages are added here.
    Returns: the version that now holds the change, or the newest one if nothing needed to change.
    Raises: StoreError when a blob that the version would name is missing, or when an endpoint without any version yet
        does not honour conditional writes.
    """
    while True:
        parent = Versions(versions.store).newest()  # a fresh listing: gc may have passed a remembered number
        nonce = new_nonce()
        if parent is None and versions.store.needs_probe:
            prove_conditional_writes(versions.store)  # an endpoint that overwrites would silently lose versions
        try:
            draft = build(parent, nonce)
            if draft is None:
                return parent
            manifest = _manifest(draft, parent, nonce, created)
            _check_blobs(versions.store, [manifest.base.weights, *draft.state.blobs(), *written()])
        except BaseException as error:
            _discard(versions.store, written())
            if isinstance(error, _GONE) and _overtaken(versions.store, parent):
                continue  # gc deleted it because there is a newer version: build on that one
            raise
        # From here on an error leaves the blobs in place: the manifest may have been written nevertheless.
        outcome = versions.commit(manifest)
        if outcome is Commit.WON:
            return manifest
        if outcome is Commit.LOST:
            _discard(versions.store, written())


def _manifest(draft: Draft, parent: Manifest | None, nonce: str, created: dict[str, Any]) -> Manifest:
    number = parent.version + 1 if parent else 1
    pinned, oldest_kept = draft.pinned, draft.oldest_kept
    return Manifest(
        version=number,
        parent=Parent(parent.version, parent.sha256) if parent else None,
        nonce=nonce,
        created={**created, **provenance()},
        base=draft.base,
        mode=draft.mode,
        state=draft.state,
        removed=draft.removed,
        last_gc=number if draft.is_gc else parent.last_gc if parent else 0,
        oldest_kept=oldest_kept if oldest_kept is not None else parent.oldest_kept if parent else 1,
        pinned=pinned if pinned is not None else parent.pinned if parent else (),
    ).sealed()


def _check_blobs(store: Store, refs: list[BlobRef]) -> None:
    with ThreadPoolExecutor(_HEAD_THREADS) as pool:
        infos = list(pool.map(lambda ref: store.head(ref.key), refs))
    for ref, info in zip(refs, infos, strict=True):
        if info is None or info.bytes != ref.bytes:
            what = "is missing" if info is None else f"has {info.bytes} bytes, not {ref.bytes}"
            raise StoreError(
                f"{store.url}/{ref.key}, which the next version would name, {what}: nothing was published. "
                "`condu versions verify` says what else is damaged, `condu doctor` checks the store"
            )


def _overtaken(store: Store, parent: Manifest | None) -> bool:
    return Versions(store).newest_number() != (parent.version if parent else 0)


def _discard(store: Store, refs: Iterable[BlobRef]) -> None:
    for ref in refs:
        try:
            store.delete(ref.key)
        except StoreError:
            return  # only a courtesy: gc deletes what no version names
