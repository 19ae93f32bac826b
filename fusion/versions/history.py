"""The versions of one store: finding the newest, reading one, creating the next.

The commit rule is described in docs/format.md and model-checked in tests/fusion/versions/protocol_model.py. A version
is its manifest: it is published from the moment that this object exists, and never changes afterwards.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import Enum

from fusion.errors import BlobNotFoundError, UnknownVersionError, VersionGoneError
from fusion.store import ObjectInfo, Store
from fusion.versions.manifest import Manifest

_PREFIX = "versions/"


class Commit(Enum):
    """The outcome of an attempt to commit."""

    WON = "won"
    LOST = "lost"
    """Another publisher was first: no version names what this one wrote."""
    UNSURE = "unsure"
    """gc has passed the number. Later versions may name what this publisher wrote, or none does."""


class Versions:
    """The versions of one store. Remembers the newest number it has seen, so that a poll costs one request."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._known = 0

    def newest_number(self) -> int:
        """Number of the newest version, 0 if nothing was published yet.

        One HEAD while nothing is new, else a listing: gc may have left a gap above the remembered number, and only the
        highest number is certain to be a version.
        """
        if self._known == 0 or self.store.head(manifest_key(self._known + 1)) is not None:
            self._known = max(self.all_numbers(), default=0)
        return self._known

    def newest(self) -> Manifest | None:
        """The newest version, or None if nothing was published yet. Raises `DamagedBlobError`, `FormatError`."""
        while number := self.newest_number():
            try:
                return self.read(number)
            except (VersionGoneError, UnknownVersionError):
                self._known = 0  # gc overtook us, or the store was emptied: list again
        return None

    def read(self, number: int) -> Manifest:
        """One version. Raises `UnknownVersionError`, `VersionGoneError` (gc deleted it), `DamagedBlobError`."""
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
        """Numbers of the existing versions, ascending."""
        return list(self.listed())

    def listed(self) -> dict[int, ObjectInfo]:
        """The manifests of the existing versions, as the store lists them, by number, ascending."""
        return {number: info for info in self.store.list(_PREFIX) if (number := self._number(info.key))}

    def commit(self, manifest: Manifest) -> Commit:
        """Create the manifest. A success whose reply was lost still counts as a success.

        gc frees the numbers that it passes. So a publisher that slept through many versions can create a number a
        second time, after the version that had it was deleted; and one whose reply was lost may read the number back
        and find another publisher's manifest in place of its own. Both are detected afterwards: the newest version's
        `oldest_kept` is above every number that was ever freed.
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


def nothing_published(store: Store) -> UnknownVersionError:
    """The error for a store without a version."""
    return UnknownVersionError(
        f"nothing was published in {store.url} yet: `condu run CONFIG` or `condu fuse` publishes a version"
    )


def gone(store: Store, number: int, kept: Sequence[int]) -> VersionGoneError:
    """The error for a version that gc has deleted, with the ones that are kept."""
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
