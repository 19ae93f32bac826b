"""Fusing in the configured order while lanes still train: a task goes as soon as it and all before it are settled."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fusion.bases import Base
from fusion.experts import ExpertRecord, find_expert
from fusion.fuse import ExpertToFuse
from fusion.store import Store
from fusion.versions import Versions
from training.task_queue import TaskStatus

if TYPE_CHECKING:  # it imports Ray, and a session decides first how
    from fusion.actor import FusionClient


class OrderedFuser:
    """Hands experts to the fusion actor, one session each, in order; a failed task is skipped.

    Args:
        client: of the store's fusion actor.
        store, base: where experts and versions are, and what they are experts of.
        options: `mode`, `archive`, `replace`, `created` of the fusing.
        on_fused: called with a task and the version that holds it.
    """

    def __init__(
        self,
        client: FusionClient,
        store: Store,
        base: Base,
        options: Mapping[str, Any],
        on_fused: Callable[[str, int], None],
    ) -> None:
        self._client = client
        self._store = store
        self._versions = Versions(store)
        self._base = base
        self._options = dict(options)
        self._on_fused = on_fused
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="fuser")
        self._submitted: dict[str, Future[int]] = {}

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
            return {name: future.result() for name, future in self._submitted.items()}
        finally:
            self._pool.shutdown(cancel_futures=True)

    def _fuse(self, status: TaskStatus) -> int:
        record = find_expert(self._store, status.identity)
        assert isinstance(record, ExpertRecord), "a task that is done has a record"
        newest = self._versions.newest()
        entry = newest.state.tasks.get(status.name) if newest else None
        if newest and entry and entry.expert_sha256 == record.expert.sha256:
            version = newest.version  # fused by an earlier run: no need to wake the actor
        else:
            expert = ExpertToFuse.from_record(_named(record, status.name))
            version = self._client.fuse(self._base, [expert], **self._options)
        self._on_fused(status.name, version)
        return version


def _named(record: ExpertRecord, task: str) -> ExpertRecord:
    """Identical data under another task name makes the identical expert: the record's name is the first one's."""
    return replace(record, task=task)
