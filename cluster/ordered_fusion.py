"""Fusing in the configured order while lanes are training: a task is fused once it and all before it are settled."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fusion.errors import BlobNotFoundError, ConduError
from fusion.fuse import ExpertToFuse
from fusion.store import Store
from fusion.versions.aliases import set_aliases
from fusion.versions.bases import Base
from fusion.versions.experts import ExpertRecord, find_expert, record_key
from fusion.versions.history import Versions
from training.lanes.task_queue import TaskStatus

if TYPE_CHECKING:  # it imports Ray, which must not be imported before the session is prepared
    from fusion.actor import FusionClient


_logger = logging.getLogger(__name__)

_LARGEST_BATCH = 16
"""Experts of one version: the node that fuses has all of their files in its cache, and starts over if it dies."""


class OrderedFuser:
    """Passes experts to the fusion actor in order, one session per expert; failed tasks are skipped.

    While the actor makes a version, experts wait. Those that wait are fused into one version or one by one, see
    `FusionOptions.publish`.

    Args:
        client: client of the store's fusion actor.
        store: where experts and versions are kept.
        base: the experts' base.
        options: `mode`, `archive`, `replace` and `created` for `FusionClient.fuse`.
        on_fused: called with a task and the version that holds it.
        readd: also fuse tasks that were removed from the store; otherwise they are left out.
        batch: fuse all that wait into one version.
    """

    def __init__(
        self,
        client: FusionClient,
        store: Store,
        base: Base,
        options: Mapping[str, Any],
        on_fused: Callable[[str, int], None],
        *,
        readd: bool = False,
        batch: bool = False,
    ) -> None:
        self._client = client
        self._store = store
        self._versions = Versions(store)
        self._base = base
        self._options = dict(options)
        self._on_fused = on_fused
        self._readd = readd
        self._most = _LARGEST_BATCH if batch else 1
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="fuser")
        self._submitted: set[str] = set()
        self._waiting: deque[TaskStatus] = deque()
        self._turns: list[Future[None]] = []
        self._fused: dict[str, int] = {}

    def update(self, statuses: Sequence[TaskStatus]) -> None:
        """Submit the tasks that became ready. Raises the error of an earlier fuse, if there is one."""
        for status in statuses:
            if not status.settled:
                break
            if status.state == "done" and status.name not in self._submitted:
                self._submitted.add(status.name)
                self._waiting.append(status)
                self._turns.append(self._pool.submit(self._next))
        for turn in self._turns:
            if turn.done():
                turn.result()

    def finish(self) -> dict[str, int]:
        """Wait for all submitted tasks. Returns the version that holds each."""
        try:
            for turn in self._turns:
                turn.result()
            return dict(self._fused)
        finally:
            self._pool.shutdown(cancel_futures=True)

    def _next(self) -> None:
        """Fuse what waits, or the next of it. A turn whose task went with an earlier one finds nothing to do."""
        taken = [self._waiting.popleft() for _ in range(min(self._most, len(self._waiting)))]
        ready: list[tuple[TaskStatus, ExpertToFuse]] = []
        problem: ConduError | None = None
        for status in taken:
            try:
                if expert := self._expert(status):
                    ready.append((status, expert))
            except ConduError as error:
                problem = error
                break
        try:
            self._fuse(ready)
        except ConduError:
            if len(ready) == 1:
                raise
            for one in ready:  # those before the one that can't be fused are fused, as without batches
                self._fuse([one])
        if problem:
            raise problem

    def _expert(self, status: TaskStatus) -> ExpertToFuse | None:
        """What is to be fused for a task that is done; None where there is nothing to fuse."""
        record = find_expert(self._store, status.identity)
        assert isinstance(record, ExpertRecord), "a task that is done has a record"
        newest = self._versions.newest()
        if newest and status.name in newest.removed and not self._readd:
            _logger.warning("not fused, because it was removed from %s task=%s", self._store.url, status.name)
            return None
        entry = newest.state.tasks.get(status.name) if newest else None
        if newest and entry and entry.expert_sha256 == record.content.sha256:
            # fused by an earlier run: the actor is not needed
            self._note(status, set_aliases(self._versions, status.name, status.aliases).version)
            return None
        self._check_weights(record, status)
        return replace(ExpertToFuse.from_record(record), task=status.name, aliases=status.aliases)

    def _fuse(self, ready: Sequence[tuple[TaskStatus, ExpertToFuse]]) -> None:
        if ready:
            version = self._client.fuse(self._base, [expert for _, expert in ready], **self._options)
            for status, _ in ready:
                self._note(status, version)

    def _note(self, status: TaskStatus, version: int) -> None:
        self._fused[status.name] = version
        self._on_fused(status.name, version)

    def _check_weights(self, record: ExpertRecord, status: TaskStatus) -> None:
        if self._store.head(record.content.key) is None:
            raise BlobNotFoundError(
                f"the expert of task {status.name} was trained, but its weights are gone ({self._store.url}/"
                f"{record.content.key}): `condu versions gc --experts` deletes weights that are fused, and the newest "
                "version no longer has the task. Roll back to a version that has it, or delete "
                f"{self._store.url}/{record_key(status.identity)} and train it again"
            )
