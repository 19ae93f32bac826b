"""Who sends a request, what they may do, and how often."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

from serving.errors import LimitError


class Scope(StrEnum):
    """A right that a route can require."""

    PREDICT = "predict"
    """Classify images."""
    READ = "read"
    """List tasks and versions."""
    ADMIN = "admin"
    """Publish versions: roll back, remove a task."""


class Allowance:
    """So many a second, a second's worth at once. One demand that is larger than that is met when nothing is owed, and
    what it takes too much is owed: it passes, and the next ones wait longer.

    Args:
        per_s: above 0.
    """

    def __init__(self, per_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_s = per_s
        self._most = self._left = max(1.0, per_s)
        self._clock = clock
        self._at = clock()

    def spend(self, count: int) -> float:
        """0 if they are granted, else after how many seconds they would be; then nothing is spent."""
        now = self._clock()
        self._left = min(self._most, self._left + (now - self._at) * self._per_s)
        self._at = now
        needed = min(float(count), self._most)
        if self._left < needed:
            return (needed - self._left) / self._per_s
        self._left -= count
        return 0.0


@dataclass
class Allowances:
    """Of one caller in one replica; None: as many as they like."""

    requests: Allowance | None = None
    images: Allowance | None = None

    @classmethod
    def of(cls, requests_per_s: float | None, images_per_s: float | None) -> Allowances:
        return cls(*(None if per_s is None else Allowance(per_s) for per_s in (requests_per_s, images_per_s)))


@dataclass(frozen=True)
class Caller:
    """Who sent a request, and what they may do."""

    name: str
    scopes: frozenset[Scope]
    allowances: Allowances = field(default_factory=Allowances)

    def spend_request(self) -> None:
        """Count a request. Raises `LimitError` that says when to come back."""
        _spend(self.allowances.requests, 1, "requests")

    def spend_images(self, count: int) -> None:
        """Count the images of a request. Raises `LimitError` that says when to come back."""
        _spend(self.allowances.images, count, "images")


def _spend(allowance: Allowance | None, count: int, what: str) -> None:
    if allowance is not None and (wait_s := allowance.spend(count)):
        raise LimitError(f"more {what} a second than are allowed: nothing was computed", math.ceil(wait_s))
