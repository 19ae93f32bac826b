"""Versions: finding the newest, reading one, and committing the next.

The commit rule (model-checked in tests/fusion/protocol_model.py, told in docs/format.md): a publisher writes its blobs,
checks that every blob it names is there, creates the next manifest by put-if-absent, and makes sure that the number
was a new one. Who loses reads the winner and builds on top of it, under a fresh nonce. A version is its manifest: until
that object exists nothing was published, and from then on it never changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum
from typing import Any

from fusion.bases import Base
from fusion.blobs import BlobRef, new_nonce
from fusion.errors import BlobNotFoundError, StateDictError, StoreError, UnknownVersionError, VersionGoneError
from fusion.manifest import Manifest, Parent
from fusion.patience import waits_for_the_store
from fusion.provenance import provenance
from fusion.state import FusedState
from fusion.store import ObjectInfo, Store
from fusion.store.check import prove_conditional_writes
from fusion.store.local import LocalStore

_PREFIX = "versions/"
_HEAD_THREADS = 16
_GONE = (StoreError, StateDictError, UnknownVersionError, VersionGoneError)
"""What a publisher may meet when gc takes a blob or a version from under it."""


@dataclass(frozen=True)
class Draft:
    """What a publish wants the next version to be; the rest of its manifest follows from its parent.

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


class Commit(Enum):
    """What became of an attempt to commit."""

    WON = "won"
    LOST = "lost"
    """Another publisher was first: what this one wrote is named by nobody."""
    UNSURE = "unsure"
    """gc has passed the number by. What this one wrote may be named by later versions, or by nobody."""


class Versions:
    """The versions of one store. Remembers the newest number that it saw, so that a poll costs one request."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._known = 0

    def newest_number(self) -> int:
        """Number of the newest version, 0 when nothing was ever published.

        One HEAD while nothing is new, a listing else: gc may have left a gap above the number in hand, and only the
        highest number is certainly a version.
        """
        if self._known == 0 or self.store.head(manifest_key(self._known + 1)) is not None:
            self._known = max(self.all_numbers(), default=0)
        return self._known

    def newest(self) -> Manifest | None:
        """The newest version, or None. Raises `DamagedBlobError` when its manifest is damaged."""
        while number := self.newest_number():
            try:
                return self.read(number)
            except (VersionGoneError, UnknownVersionError):
                self._known = 0  # gc overtook us, or the store was emptied: look again from the start
        return None

    def read(self, number: int) -> Manifest:
        """One version. Raises `UnknownVersionError`, `VersionGoneError` (gc took it), `DamagedBlobError`."""
        key = manifest_key(number)
        try:
            return Manifest.from_bytes(self.store.get(key), f"{self.store.url}/{key}")
        except BlobNotFoundError:
            numbers = self.all_numbers()
        if 0 < number < max(numbers, default=0):
            raise gone(self.store, number, numbers)
        raise UnknownVersionError(
            f"{self.store.url} has no version {number}: "
            + (f"the newest is {max(numbers)}" if numbers else "nothing was published there yet")
        )

    def all_numbers(self) -> list[int]:
        """Numbers of the versions that exist, ascending."""
        return list(self.listed())

    def listed(self) -> dict[int, ObjectInfo]:
        """Versions that exist, by number, ascending: what the store says about their manifests."""
        return {number: info for info in self.store.list(_PREFIX) if (number := self._number(info.key))}

    def commit(self, manifest: Manifest) -> Commit:
        """Create the manifest. One's own lost success counts as success.

        gc frees the numbers that it passes, so a publisher that slept through enough versions can create a number anew
        that was taken, and is no version any more; and who then reads that number back finds a stranger's manifest over
        its own success. Both are seen afterwards: the newest version's `oldest_kept` is above every number ever freed.
        """
        try:
            won = (
                self.store.put_if_absent(manifest_key(manifest.version), manifest.to_bytes())
                or self.read(manifest.version).nonce == manifest.nonce
            )
        except (UnknownVersionError, VersionGoneError):
            return Commit.UNSURE
        now = Versions(self.store)
        if now.newest_number() > manifest.version:
            newest = now.newest()
            if newest is None or not newest.keeps(manifest.version):
                return Commit.UNSURE
        return Commit.WON if won else Commit.LOST

    @staticmethod
    def _number(key: str) -> int:
        stem = key.removeprefix(_PREFIX).removesuffix(".json")
        return int(stem) if stem.isdigit() else 0


@waits_for_the_store
def publish(
    versions: Versions,
    build: Callable[[Manifest | None, str], Draft | None],
    *,
    written: Callable[[], Iterable[BlobRef]] = tuple,
    created: dict[str, Any],
) -> Manifest | None:
    """Publish one version, building it anew each time that another publisher was first.

    Args:
        build: makes the next state from the newest version (None: there is none) and a nonce, writing blobs under that
            nonce; None says that nothing needs to change. It may run again after a version that it made was published
            and collected at once, so what is done already has to count as nothing to do.
        written: the blobs that the last `build` wrote.
        created: `kind` and `why` of the publish, and from which configuration; time, host and packages are added here.
    Returns: the version that now holds the change, or the newest one where nothing needed to change.
    Raises: StoreError when a blob that the version would name is missing, or, before the first version of a bucket,
        when its endpoint does not honour conditional writes.
    """
    while True:
        parent = Versions(versions.store).newest()  # listed: a number remembered from long ago may have been passed by
        nonce = new_nonce()
        if parent is None and not isinstance(versions.store, LocalStore):
            prove_conditional_writes(versions.store)  # an endpoint that overwrites would lose versions in silence
        try:
            draft = build(parent, nonce)
            if draft is None:
                return parent
            manifest = _manifest(draft, parent, nonce, created)
            _check_blobs(versions.store, [manifest.base.weights, *draft.state.blobs(), *written()])
        except BaseException as error:
            _discard(versions.store, written())
            if isinstance(error, _GONE) and _overtaken(versions.store, parent):
                continue  # gc took it because there is a newer version: build on that one
            raise
        # From here on an error leaves the blobs: the manifest may have been written all the same.
        outcome = versions.commit(manifest)
        if outcome is Commit.WON:
            return manifest
        if outcome is Commit.LOST:
            _discard(versions.store, written())


def nothing_published(store: Store) -> UnknownVersionError:
    """The error for a store without a version."""
    return UnknownVersionError(
        f"nothing was published in {store.url} yet: `condu run CONFIG` or `condu fuse` makes a version"
    )


def gone(store: Store, number: int, kept: Sequence[int]) -> VersionGoneError:
    """The error for a version that gc has taken, with the ones that are kept."""
    return VersionGoneError(f"version {number} of {store.url} is gone; kept: {spans(kept)}")


def spans(numbers: Iterable[int]) -> str:
    """Ascending numbers as people write them: `1, 4-9`."""
    found: list[list[int]] = []
    for number in numbers:
        if found and number == found[-1][1] + 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in found) or "none"


def manifest_key(number: int) -> str:
    return f"{_PREFIX}{number:08d}.json"


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
            return  # courtesy only: gc removes what no version names
