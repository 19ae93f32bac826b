"""The version being served: polls the store for the next one, stages it off the request path, swaps by one assignment.

A poll costs one request. When something goes wrong (the store does not answer, the newest manifest is damaged, gc
removed a blob while it was read) the version being served stays, and the problem is logged once and shown by `/readyz`;
requests do not notice.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable

from fusion.answers.view import View, ViewLoader
from fusion.errors import BlobNotFoundError, DamagedBlobError, FormatError, UnknownVersionError, VersionGoneError
from fusion.store.node_cache import NodeCache
from fusion.versions.history import Versions, nothing_published
from fusion.versions.manifest import Manifest
from serving.errors import NotReadyError

logger = logging.getLogger(__name__)

_POLLS_PER_LISTING = 30
_PINNED_VIEWS = 8

Stage = Callable[[View | None, View], Awaitable[None]]
"""Called before the swap with the version being served and the next one, to warm up what the next one needs."""


class VersionWatcher:
    """Knows which version answers. A request reads `current` once, at its start, and passes it on.

    Args:
        cache: the node's cache of the store.
        poll_s: seconds between two polls, on average.
        stage: runs before each swap; an error in it is logged and does not prevent the swap.
    """

    def __init__(self, cache: NodeCache, *, poll_s: float, stage: Stage | None = None) -> None:
        self.current: View | None = None
        self.problem: str | None = None
        self._store = cache.store
        self._loader = ViewLoader(cache)
        self._versions = Versions(cache.store)
        self._pinned: OrderedDict[int, View] = OrderedDict()
        self._poll_s = poll_s
        self._stage = stage
        self._polls = 0
        self._lock = asyncio.Lock()

    async def run(self) -> None:
        """Poll until cancelled."""
        while True:
            await self.poll()
            await asyncio.sleep(self._poll_s * random.uniform(0.75, 1.25))  # replicas must not poll in step

    async def poll(self, *, listing: bool = False) -> bool:
        """Poll once. True: another version is being served now. Never raises.

        Args:
            listing: list the versions instead of probing for the next number. If gc removed that one while the store
                was out of reach, probing never finds a later one; hence every so many polls list in any case.
        """
        async with self._lock:
            self._polls += 1
            if listing or self._polls % _POLLS_PER_LISTING == 0:
                self._versions = Versions(self._store)
            before, started = self.current, time.perf_counter()
            try:
                view = await asyncio.to_thread(self._next)
            except Exception as error:
                self._report(error)
                return False
            if view is None:
                return False
            if self._stage is not None:
                try:
                    await self._stage(before, view)
                except Exception as error:
                    logger.warning("staging failed version=%d: %s", view.version, error)
            self.current = view  # the swap
            seconds = time.perf_counter() - started
            old = before.version if before else None
            logger.info("swap version=%d from=%s tasks=%d s=%.2f", view.version, old, len(view.tasks), seconds)
            return True

    async def view(self, version: int | None) -> View:
        """The version for a request: the one that it names, else the one being served.

        Raises `NotReadyError` (none is being served yet), `UnknownVersionError`, `VersionGoneError`, and the store's
        errors.
        """
        current = self.current
        if version is None:
            if current is None:
                raise NotReadyError(
                    self.problem or f"{self._store.url} has no version yet: `condu run CONFIG` makes one"
                )
            return current
        if current is not None and version == current.version:
            return current
        if version not in self._pinned:
            self._pinned[version] = await asyncio.to_thread(self._read_pinned, version)
            while len(self._pinned) > _PINNED_VIEWS:
                self._pinned.popitem(last=False)
        self._pinned.move_to_end(version)
        return self._pinned[version]

    def _next(self) -> View | None:
        try:
            return self._look()
        except (BlobNotFoundError, VersionGoneError, UnknownVersionError) as error:
            # gc removed a version or a blob while it was read. Then there is a newer one, which a listing finds
            self._versions = Versions(self._store)
            logger.info("looking again at %s: %s", self._store.url, error)
            return self._look()

    def _look(self) -> View | None:
        if self.current is None:
            manifest, damaged = newest_readable(self._versions)
            first = self._loader.load(manifest)
            if damaged:
                self._report(damaged)
            else:
                self._recovered()
            return first
        number = self._versions.newest_number()
        if number < self.current.version:
            raise UnknownVersionError(
                f"the newest version in {self._store.url} is {number}, older than the one being served: "
                "was the store emptied?"
            )
        view = self._loader.load(self._versions.read(number)) if number > self.current.version else None
        self._recovered()
        return view

    def _read_pinned(self, version: int) -> View:
        try:
            return self._loader.load(Versions(self._store).read(version))
        except BlobNotFoundError as error:
            newest = Versions(self._store).newest()
            if newest is None or newest.keeps(version):
                raise  # the store is damaged
            raise VersionGoneError(f"version {version} of {self._store.url} is gone ({error})") from error

    def _report(self, error: Exception) -> None:
        problem = f"{type(error).__name__}: {error}"
        if problem != self.problem:
            kept = f"still serving version {self.current.version}" if self.current else "no version to serve"
            logger.warning("watching %s: %s (%s)", self._store.url, problem, kept)
        self.problem = problem

    def _recovered(self) -> None:
        if self.problem:
            logger.info("watching %s: recovered from: %s", self._store.url, self.problem)
        self.problem = None


def newest_readable(versions: Versions) -> tuple[Manifest, Exception | None]:
    """The newest version with a readable manifest, and the error of the newest one that is not.

    So a replica that starts while the newest manifest is damaged serves the same version as the others.

    Raises `UnknownVersionError` when nothing was published, `DamagedBlobError` or `FormatError` when nothing is
    readable.
    """
    first: DamagedBlobError | FormatError | None = None
    for number in range(versions.newest_number(), 0, -1):
        try:
            return versions.read(number), first
        except (DamagedBlobError, FormatError) as error:
            first = first or error
        except (VersionGoneError, UnknownVersionError):
            break
    raise first or nothing_published(versions.store)
