"""What a forward takes, and what follows: which images share one, and which experts are worth building.

An expert that is applied to the base as it is costs no building and little memory, and its images share forwards with
those of other experts. Built, its forwards are faster, but its alone. Both are timed once, when a replica starts, with
one image and with a few, and taken to grow by as much for every further image.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

FEW = 4
"""Images of the larger forwards that are timed."""
_TIMES, _ENOUGH_S = 3, 0.25


@dataclass(frozen=True)
class Costs:
    """Seconds of a forward: a first image, and each further one.

    Attributes:
        built: of an expert's own model.
        live: of the base with one expert applied to it.
        per_expert: what each further expert adds to a batch.
    """

    built: tuple[float, float]
    live: tuple[float, float]
    per_expert: float

    @classmethod
    def measured(cls, built: Callable[[int], Any], live: Callable[[int, int], Any]) -> Costs:
        """Time forwards.

        Args:
            built: runs so many images.
            live: runs so many images, of so many experts.
        """
        few, first = seconds_of(lambda: live(FEW, 1)), seconds_of(lambda: live(1, 1))
        return cls(
            built=_line(seconds_of(lambda: built(1)), seconds_of(lambda: built(FEW))),
            live=_line(first, few),
            per_expert=max(0.0, seconds_of(lambda: live(FEW, FEW)) - few) / (FEW - 1),
        )

    def built_s(self, num_images: int) -> float:
        """Of a built expert's forward."""
        return self.built[0] + self.built[1] * (num_images - 1)

    def live_s(self, num_images: int, num_experts: int = 1) -> float:
        """Of a forward of experts that are applied as they are."""
        return self.live[0] + self.live[1] * (num_images - 1) + self.per_expert * (num_experts - 1)

    def joins(self, counts: Sequence[int], *, is_built: bool) -> bool:
        """Whether an image takes less in a forward of many experts than in one of the first expert alone.

        Args:
            counts: images of each expert.
            is_built: the first expert is.
        """
        alone = self.built_s(counts[0]) if is_built else self.live_s(counts[0])
        return self.live_s(sum(counts), len(counts)) / sum(counts) <= alone / counts[0]


def _line(first: float, few: float) -> tuple[float, float]:
    return first, max(0.0, few - first) / (FEW - 1)


def seconds_of(run: Callable[[], Any]) -> float:
    """The shortest of a few runs: what disturbs one makes it longer. A long one is run once: a replica waits for it."""
    found: list[float] = []
    while len(found) < _TIMES and sum(found) < _ENOUGH_S:
        started = time.perf_counter()
        run()
        found.append(time.perf_counter() - started)
    return min(found)


class Payoff:
    """Which experts are worth building: those whose forwards took as much longer without as building would have taken.

    So what is spent is never more than twice what it would be if it were known before which questions come. Knows no
    key for longer than it is asked about often. For any thread.

    Args:
        build_s: what building takes, until one was built.
    """

    def __init__(self, build_s: float) -> None:
        self._build_s = build_s
        self._lost: dict[str, float] = {}
        self._lock = threading.Lock()

    def spent(self, key: str, seconds: float) -> None:
        """An expert's images took so much longer than its own model would have taken; less than 0: they took less."""
        with self._lock:
            lost = self._lost.get(key, 0.0) + seconds
            if lost > 0:
                self._lost[key] = lost
            else:
                self._lost.pop(key, None)

    def is_due(self, key: str) -> bool:
        """Whether an expert is to be built now. True once: what was lost is forgotten."""
        with self._lock:
            if key not in self._lost or self._lost[key] < self._build_s:
                return False
            del self._lost[key]
            return True

    def built_in(self, seconds: float) -> None:
        """What building the last one took."""
        with self._lock:
            self._build_s = seconds
