"""Turns: one job runs at a time, and callers take turns, so that a caller with a hundred jobs does not block the rest.

Every caller is in the queue at most once. When its job is done, it goes to the end of the queue if it has more. So a
job waits for the running one and for one job of each caller ahead, however many jobs those have; jobs of one caller run
in the order of their numbers.
"""

from __future__ import annotations

import heapq
import itertools
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, order=True)
class _Job:
    number: int
    arrival: int
    caller: str = field(compare=False)
    what: tuple[str, ...] = field(compare=False)
    work: Callable[[], Any] = field(compare=False)
    result: Future[Any] = field(compare=False)


@dataclass(frozen=True)
class Waiting:
    """A job that has not begun: its caller, and a description."""

    caller: str
    what: tuple[str, ...]


class Turns:
    """Runs jobs in a thread of its own, one at a time. All methods may be called from any thread."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._jobs: dict[str, list[_Job]] = {}
        self._line: deque[str] = deque()
        self._served: str | None = None
        self._next_number: dict[str, int] = {}
        self._arrivals = itertools.count()
        threading.Thread(target=self._serve, name="turns", daemon=True).start()

    def submit(
        self, caller: str, number: int, what: tuple[str, ...], work: Callable[[], Any], *, first: int | None = None
    ) -> Future[Any]:
        """Add a job. The future gets what `work` returns or raises; a job that is cancelled in time never begins.

        Args:
            caller: a name that no other caller has.
            number: number of the job among this caller's: lower ones run first, whenever they arrive.
            what: description of the job, for `waiting`.
            first: the lowest number of this caller that has no answer yet. This job waits for it and those in between,
                until they have arrived or `settle` says that they will not. None: it waits for no other.
        """
        job = _Job(number, next(self._arrivals), caller, what, work, Future())
        with self._changed:
            heapq.heappush(self._jobs.setdefault(caller, []), job)
            self._expect(caller, number if first is None else first)
        return job.result

    def settle(self, caller: str, first: int) -> None:
        """Wait for none of this caller's jobs below the number `first`: they have their answers."""
        with self._changed:
            self._expect(caller, first)

    def waiting(self) -> list[Waiting]:
        """Jobs that have not begun, in the order in which they would run if no others arrived."""
        with self._changed:
            held = self._jobs.keys() - {*self._line, self._served}
            callers = [*self._line, *([self._served] if self._served else []), *sorted(held)]
            places = [
                (round_, place, job)
                for place, caller in enumerate(callers)
                for round_, job in enumerate(sorted(self._jobs.get(caller, ())))
            ]
        return [Waiting(job.caller, job.what) for _, _, job in sorted(places) if not job.result.cancelled()]

    def _serve(self) -> None:
        while True:
            job = self._next()
            if job.result.set_running_or_notify_cancel():
                try:
                    job.result.set_result(job.work())
                except BaseException as error:  # the error is the caller's; the queue goes on
                    job.result.set_exception(error)

    def _next(self) -> _Job:
        with self._changed:
            served, self._served = self._served, None
            if served:
                self._line_up(served)
            while not self._line:
                self._changed.wait()
            caller = self._served = self._line.popleft()
            job = heapq.heappop(self._jobs[caller])
            if not self._jobs[caller]:
                del self._jobs[caller]
            self._expect(caller, job.number + 1)
            return job

    def _expect(self, caller: str, number: int) -> None:
        """The caller's next job has this number, or a higher one if that is known already."""
        self._next_number[caller] = max(number, self._next_number.get(caller, 0))
        self._line_up(caller)
        self._changed.notify()

    def _line_up(self, caller: str) -> None:
        """Let a caller stand in line that has a job which waits for no other of its own."""
        ready = caller in self._jobs and self._jobs[caller][0].number <= self._next_number[caller]
        if ready and caller not in self._line and caller != self._served:
            self._line.append(caller)
