"""Turns: one job at a time, callers take turns, and nothing that a job does stops the queue."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future

import pytest

from fusion.turns import Turns, Waiting


class Line:
    """Turns whose first job lasts until `go`, so that a whole queue can form behind it."""

    def __init__(self) -> None:
        self.turns = Turns()
        self.order: list[str] = []
        self.go = threading.Event()
        began = threading.Event()
        self.first = self.turns.submit("a", 0, ("a0",), lambda: (began.set(), self.go.wait()))
        began.wait()
        self.results: list[Future[None]] = []

    def add(self, caller: str, number: int, *, first: int | None = None) -> Future[None]:
        work = self._noting(caller, number)
        self.results.append(self.turns.submit(caller, number, (f"{caller}{number}",), work, first=first))
        return self.results[-1]

    def _noting(self, caller: str, number: int) -> Callable[[], None]:
        return lambda: self.order.append(f"{caller}{number}")

    def run(self) -> list[str]:
        self.go.set()
        for result in self.results:
            if not result.cancelled():
                result.result(timeout=30)
        return self.order


@pytest.fixture
def line() -> Iterator[Line]:
    line = Line()
    yield line
    line.go.set()


def test_a_caller_with_many_jobs_delays_others_by_at_most_one_of_them(line: Line) -> None:
    for number in range(1, 6):
        line.add("a", number)
    line.add("b", 0)
    line.add("c", 0)
    line.add("c", 1)
    # a's first job ran while the queue formed, so a's next turn comes last
    assert line.run() == ["b0", "c0", "a1", "c1", "a2", "a3", "a4", "a5"]


def test_a_callers_own_jobs_run_in_the_order_of_their_numbers_whenever_they_arrive(line: Line) -> None:
    for number in (3, 1, 2):
        line.add("b", number)
    assert line.run() == ["b1", "b2", "b3"]


def test_a_job_waits_for_its_callers_lower_numbers_that_have_not_arrived_yet(line: Line) -> None:
    """As after the death of an actor: the jobs come again, in any order."""
    line.go.set()
    line.first.result(timeout=30)
    line.add("b", 3, first=1)
    line.add("b", 2, first=1)
    line.add("c", 5, first=5).result(timeout=30)
    assert [waiting.what for waiting in line.turns.waiting()] == [("b2",), ("b3",)]
    line.add("b", 1, first=1)
    assert line.run() == ["c5", "b1", "b2", "b3"]


def test_a_job_does_not_wait_for_numbers_that_are_settled_before_or_after_it_arrives(line: Line) -> None:
    line.go.set()
    late = line.add("b", 7, first=4)
    line.turns.settle("b", 6)
    line.add("c", 0).result(timeout=30)
    assert not late.done(), "6 has no answer yet"
    line.turns.settle("b", 7)
    late.result(timeout=30)
    line.turns.settle("d", 3)
    line.add("d", 3, first=1).result(timeout=30)
    line.turns.settle("d", 2)  # a late report does not undo a newer one
    line.add("d", 4, first=2).result(timeout=30)
    assert line.order == ["c0", "b7", "d3", "d4"]


def test_waiting_jobs_are_listed_in_the_order_in_which_they_will_run(line: Line) -> None:
    for caller, number in (("a", 1), ("b", 1), ("b", 0), ("c", 0), ("a", 2)):
        line.add(caller, number)
    told = line.turns.waiting()
    assert told[0] == Waiting("b", ("b0",))
    assert [waiting.what[0] for waiting in told] == line.run()
    assert line.turns.waiting() == []


def test_an_error_goes_to_the_caller_and_the_queue_goes_on(line: Line) -> None:
    broken = line.turns.submit("b", 0, ("b0",), lambda: 1 // 0)
    line.add("b", 1)
    assert line.run() == ["b1"]
    with pytest.raises(ZeroDivisionError):
        broken.result(timeout=30)


def test_a_cancelled_job_that_has_not_begun_never_does(line: Line) -> None:
    assert line.add("b", 0).cancel()
    line.add("b", 1)
    assert [waiting.what for waiting in line.turns.waiting()] == [("b1",)]
    assert line.run() == ["b1"]


def test_jobs_never_overlap(line: Line) -> None:
    running = threading.Lock()
    overlaps = []

    def alone() -> None:
        overlaps.append(not running.acquire(blocking=False))
        running.release()

    results = [line.turns.submit(caller, n, (), alone) for n in range(50) for caller in "bcd"]
    line.go.set()
    for result in results:
        result.result(timeout=30)
    assert overlaps == [False] * 150
