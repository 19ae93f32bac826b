"""Versions: finding the newest, reading one, and committing the next.

The commit rule (model-checked, see docs/format.md): a publisher writes its blobs, checks that every blob it names is
there, and creates the next manifest by put-if-absent. Who loses reads the winner and fuses on top of it, under a fresh
nonce. A version is its manifest: until that object exists nothing was published, and from then on it never changes.
"""

from __future__ import annotations

import getpass
import os
import socket
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as package_version
from typing import Any

from fusion.bases import Base
from fusion.blobs import BlobRef, new_nonce
from fusion.errors import BlobNotFoundError, StoreError, UnknownVersionError, VersionGoneError
from fusion.manifest import Manifest
from fusion.patience import waits_for_the_store
from fusion.state import FusedState
from fusion.store import Store

_PREFIX = "versions/"
_HEAD_THREADS = 16


@dataclass(frozen=True)
class Draft:
    """What a publish wants the next version to be; the rest of its manifest follows from its parent."""

    base: Base
    mode: dict[str, Any]
    state: FusedState
    removed: tuple[str, ...] = ()


class Versions:
    """The versions of one store. Remembers the newest number that it saw, so that a poll costs one request."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._known = 0

    def newest_number(self) -> int:
        """Number of the newest version, 0 when nothing was ever published."""
        if self._known == 0:
            numbers = [self._number(info.key) for info in self.store.list(_PREFIX)]
            self._known = max(numbers, default=0)
            if self._known == 0:
                return 0
        while self.store.head(manifest_key(self._known + 1)) is not None:
            self._known += 1
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
            newest = self.newest_number() if number != self._known else 0
            if 0 < number < newest:
                raise VersionGoneError(
                    f"version {number} of {self.store.url} is gone: the newest is {newest}"
                ) from None
            raise UnknownVersionError(
                f"{self.store.url} has no version {number}: "
                + (f"the newest is {newest}" if newest else "nothing was published there yet")
            ) from None

    def all_numbers(self) -> list[int]:
        """Numbers of the versions that exist, ascending."""
        return [self._number(info.key) for info in self.store.list(_PREFIX)]

    def commit(self, manifest: Manifest) -> bool:
        """Create the manifest. False: another publisher was first. One's own lost success counts as success."""
        key = manifest_key(manifest.version)
        if self.store.put_if_absent(key, manifest.to_bytes()):
            return True
        return self.read(manifest.version).nonce == manifest.nonce

    @staticmethod
    def _number(key: str) -> int:
        stem = key.removeprefix(_PREFIX).removesuffix(".json")
        return int(stem) if stem.isdigit() else 0


@waits_for_the_store
def publish(
    versions: Versions,
    build: Callable[[Manifest | None, str], Draft | None],
    *,
    written: Callable[[], Iterable[BlobRef]],
    created: dict[str, Any],
) -> Manifest | None:
    """Publish one version, building it anew each time that another publisher was first.

    Args:
        build: makes the next state from the newest version (None: there is none) and a nonce, writing blobs under that
            nonce; None says that nothing needs to change.
        written: the blobs that the last `build` wrote.
        created: who, why, and from which configuration; time, host and package versions are added here.
    Returns: the version that now holds the change, or the newest one where nothing needed to change.
    Raises: StoreError when a blob that the version would name is missing.
    """
    while True:
        parent = versions.newest()
        nonce = new_nonce()
        try:
            draft = build(parent, nonce)
            if draft is None:
                return parent
            manifest = Manifest(
                version=parent.version + 1 if parent else 1,
                parent=parent.sha256 if parent else None,
                nonce=nonce,
                created={**created, **_provenance()},
                base=draft.base,
                mode=draft.mode,
                state=draft.state,
                removed=draft.removed,
                last_gc=parent.last_gc if parent else 0,
                oldest_kept=parent.oldest_kept if parent else 1,
                pinned=parent.pinned if parent else (),
            ).sealed()
            _check_blobs(versions.store, [manifest.base.weights, *draft.state.blobs(), *written()])
        except BaseException:
            _discard(versions.store, written())
            raise
        # From here on an error leaves the blobs: the manifest may have been written all the same.
        if versions.commit(manifest):
            return manifest
        _discard(versions.store, written())


def manifest_key(number: int) -> str:
    return f"{_PREFIX}{number:08d}.json"


def _check_blobs(store: Store, refs: list[BlobRef]) -> None:
    with ThreadPoolExecutor(_HEAD_THREADS) as pool:
        infos = list(pool.map(lambda ref: store.head(ref.key), refs))
    for ref, info in zip(refs, infos, strict=True):
        if info is None or info.bytes != ref.bytes:
            what = "is missing" if info is None else f"has {info.bytes} bytes, not {ref.bytes}"
            raise StoreError(
                f"{store.url}/{ref.key}, which the next version would name, {what}: nothing was published. "
                "`condu doctor` checks the store"
            )


def _discard(store: Store, refs: Iterable[BlobRef]) -> None:
    for ref in refs:
        try:
            store.delete(ref.key)
        except StoreError:
            return  # courtesy only: gc removes what no version names


def _provenance() -> dict[str, Any]:
    packages = {}
    for name in ("condu", "torch", "open_clip_torch", "ray", "numpy", "safetensors"):
        try:
            packages[name] = package_version(name)
        except PackageNotFoundError:
            continue
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "by": f"{user}@{socket.gethostname()}",
        "packages": packages,
    }
