"""Fusing in the configured order while lanes still train: a task goes as soon as it and all before it are settled."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fusion.errors import BlobNotFoundError
from fusion.fuse import ExpertToFuse
from fusion.store import Store
from fusion.versions.bases import Base
from fusion.versions.experts import ExpertRecord, find_expert, record_key
from fusion.versions.history import Versions
from training.lanes.task_queue import TaskStatus

if TYPE_CHECKING:  # it imports Ray, and a session decides first how
    from fusion.actor import FusionClient


_logger = logging.getLogger(__name__)


class OrderedFuser:
    """Hands experts to the fusion actor, one session each, in order; a failed task is skipped.

    Args:
        client: of the store's fusion actor.
        store, base: where experts and versions are, and what they are experts of.
        options: `mode`, `archive`, `replace`, `created` of the fusing.
        on_fused: called with a task and the version that holds it.
        readd: fuse tasks that were removed from the store, too; else they are left out.
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
        """Submit what became ready. Raises what an earlier fusing raised."""
        for status in statuses:
            if not status.settled:
                break
            if status.state == "done" and status.name not in self._submitted:
                self._submitted[status.name] = self._pool.submit(self._fuse, status)
        for future in self._submitted.values():
            if future.done():
                future.result()

    def finish(self) -> dict[str, int]:
        """Wait for all that was submitted: task to the version that holds it."""
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
            _logger.warning("not fused: removed from %s meanwhile task=%s", self._store.url, status.name)
            return None
        entry = newest.state.tasks.get(status.name) if newest else None
        if newest and entry and entry.expert_sha256 == record.expert.sha256:
            version = newest.version  # fused by an earlier run: no need to wake the actor
        else:
            self._check_weights(record, status)
            expert = ExpertToFuse.from_record(_named(record, status.name))
            version = self._client.fuse(self._base, [expert], **self._options)
        self._on_fused(status.name, version)
        return version

    def _check_weights(self, record: ExpertRecord, status: TaskStatus) -> None:
        if self._store.head(record.expert.key) is None:
            raise BlobNotFoundError(
                f"the expert of task {status.name} was trained, and its weights are gone ({self._store.url}/"
                f"{record.expert.key}): `condu versions gc --experts` takes them once they are fused, and the newest "
                "version lacks them. Roll back to a version that has the task, or train it again: delete "
                f"{self._store.url}/{record_key(status.identity)} first"
            )


def _named(record: ExpertRecord, task: str) -> ExpertRecord:
    """Identical data under another task name makes the identical expert: the record's name is the first one's."""
    return replace(record, task=task)
