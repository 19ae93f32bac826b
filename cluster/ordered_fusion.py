"""Fusing in the configured order while lanes are training: a task is fused once it and all before it are settled."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fusion.errors import BlobNotFoundError
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


class OrderedFuser:
    """Passes experts to the fusion actor in order, one session per expert; failed tasks are skipped.

    Args:
        client: client of the store's fusion actor.
        store: where experts and versions are kept.
        base: the experts' base.
        options: `mode`, `archive`, `replace` and `created` for `FusionClient.fuse`.
        on_fused: called with a task and the version that holds it.
        readd: also fuse tasks that were removed from the store; otherwise they are left out.
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
    ) -> None:
        self._client = client
        self._store = store
        self._versions = Versions(store)
        self._base = base
        self._options = dict(options)
        self._on_fused = on_fused
        self._readd = readd
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="fuser")
        self._submitted: dict[str, Future[int | None]] = {}

    def update(self, statuses: Sequence[TaskStatus]) -> None:
        """Submit the tasks that became ready. Raises the error of an earlier fuse, if there is one."""
        for status in statuses:
            if not status.settled:
                break
            if status.state == "done" and status.name not in self._submitted:
                self._submitted[status.name] = self._pool.submit(self._fuse, status)
        for future in self._submitted.values():
            if future.done():
                future.result()

    def finish(self) -> dict[str, int]:
        """Wait for all submitted tasks. Returns the version that holds each."""
        try:
            versions = {name: future.result() for name, future in self._submitted.items()}
            return {name: version for name, version in versions.items() if version is not None}
        finally:
            self._pool.shutdown(cancel_futures=True)

    def _fuse(self, status: TaskStatus) -> int | None:
        record = find_expert(self._store, status.identity)
        assert isinstance(record, ExpertRecord), "a task that is done has a record"
        newest = self._versions.newest()
        if newest and status.name in newest.removed and not self._readd:
            _logger.warning("not fused, because it was removed from %s task=%s", self._store.url, status.name)
            return None
        entry = newest.state.tasks.get(status.name) if newest else None
        if newest and entry and entry.expert_sha256 == record.content.sha256:
            # fused by an earlier run: the actor is not needed
            version = set_aliases(self._versions, status.name, status.aliases).version
        else:
            self._check_weights(record, status)
            expert = replace(ExpertToFuse.from_record(record), task=status.name, aliases=status.aliases)
            version = self._client.fuse(self._base, [expert], **self._options)
        self._on_fused(status.name, version)
        return version

    def _check_weights(self, record: ExpertRecord, status: TaskStatus) -> None:
        if self._store.head(record.content.key) is None:
            raise BlobNotFoundError(
                f"the expert of task {status.name} was trained, but its weights are gone ({self._store.url}/"
                f"{record.content.key}): `condu versions gc --experts` deletes weights that are fused, and the newest "
                "version no longer has the task. Roll back to a version that has it, or delete "
                f"{self._store.url}/{record_key(status.identity)} and train it again"
            )
