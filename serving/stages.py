"""Where an answer's time goes, in stages that add up to nearly all of it.

`decode` (from bytes to crops), `queue` (until the thread that runs the models is free), `base` (the base sees the
images), `route` (a rule decides who answers), `experts` (experts are rebuilt where they have to be, texts are encoded,
experts see images), `answer` (the rule combines what they said).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal

Stage = Literal["decode", "queue", "base", "route", "experts", "answer"]

_waits: ContextVar[list[float] | None] = ContextVar("waits", default=None)
"""Of the stage that this is part of; shared with the asyncio tasks that it starts."""


class Stopwatch:
    """The seconds of one answer by stage. A stage that is entered twice adds up."""

    def __init__(self) -> None:
        self.seconds: dict[Stage, float] = {}

    @contextmanager
    def stage(self, name: Stage) -> Iterator[None]:
        """Time a block. What it `waited` counts as `queue` instead: of calls that wait side by side the shortest wait,
        because then one of them ran."""
        waits: list[float] = []
        token = _waits.set(waits)
        started = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - started
            _waits.reset(token)
            if waits:
                self._add("queue", min(waits))
            self._add(name, seconds - min(waits, default=0.0))

    def _add(self, name: Stage, seconds: float) -> None:
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds


def waited(seconds: float) -> None:
    """Tell the stage that this call is part of, if any, how long work waited until it was begun."""
    if (waits := _waits.get()) is not None:
        waits.append(seconds)
