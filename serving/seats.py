"""Seats: a limit on how many different experts are in use at once. More hot tasks than fit in memory make the service
slower, never crash it.

A cache limits what it holds, not what requests still use: with 64 requests for 64 tasks, 64 models would be in memory
however small the cache. So a request first takes a seat for its expert. Requests for the same expert share a seat; a
request for another expert waits until a seat is free. While it waits, others may still join occupied seats, because
one more forward costs far less than a load, but only for `patience_s`: after that they queue behind it.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class _Waiting:
    key: str
    since: float
    admitted: asyncio.Future[None]


class Seats:
    """At most `capacity` different keys at once, within one event loop.

    Args:
        patience_s: how long a waiting key lets requests for seated keys pass it. About the duration of a load is right.
    """

    def __init__(self, capacity: int, *, patience_s: float = 1.0) -> None:
        self._capacity = capacity
        self._patience_s = patience_s
        self._users: dict[str, int] = {}
        self._queue: deque[_Waiting] = deque()

    @property
    def taken(self) -> tuple[str, ...]:
        return tuple(self._users)

    @asynccontextmanager
    async def take(self, key: str) -> AsyncIterator[None]:
        """Hold a seat for `key`, after waiting for a free one if necessary."""
        if self._fits(key, self._queue):
            self._users[key] = self._users.get(key, 0) + 1
        else:
            await self._wait(key)
        try:
            yield
        finally:
            self._leave(key)

    def _fits(self, key: str, before: deque[_Waiting]) -> bool:
        if not before:
            return key in self._users or len(self._users) < self._capacity
        return key in self._users and time.monotonic() - before[0].since < self._patience_s

    async def _wait(self, key: str) -> None:
        waiting = _Waiting(key, time.monotonic(), asyncio.get_running_loop().create_future())
        self._queue.append(waiting)
        try:
            await waiting.admitted
        except asyncio.CancelledError:
            if waiting in self._queue:
                self._queue.remove(waiting)
                self._admit()  # those behind it may fit now
            elif waiting.admitted.done() and not waiting.admitted.cancelled():
                self._leave(key)  # admitted and cancelled at the same moment
            raise

    def _leave(self, key: str) -> None:
        self._users[key] -= 1
        if not self._users[key]:
            del self._users[key]
        self._admit()

    def _admit(self) -> None:
        still: deque[_Waiting] = deque()
        for waiting in self._queue:
            if waiting.admitted.cancelled():
                continue
            if self._fits(waiting.key, still):
                self._users[waiting.key] = self._users.get(waiting.key, 0) + 1
                waiting.admitted.set_result(None)
            else:
                still.append(waiting)
        self._queue = still
