"""When a request is sent again: after 429, 503 and 504, and after a lost connection, for a limited time."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from fusion.backoff import delays_s

_FIRST_S, _LONGEST_S, _JITTER = 0.25, 8.0, 0.5


class Retries:
    """The pauses of one request.

    Args:
        patience_s: no attempt starts later than this after the first one.
    """

    def __init__(self, patience_s: float) -> None:
        self._ends = time.monotonic() + patience_s
        self._pauses_s = delays_s(_FIRST_S, longest_s=_LONGEST_S, jitter=_JITTER)

    def pause_s(self, asked_s: float | None) -> float | None:
        """How long to wait before the next attempt; None: it is too late for one.

        Args:
            asked_s: what the service asked for. Never undercut, and lengthened by a random share of up to a quarter, so
                that clients that were refused together don't come back together.
        """
        pause_s = next(self._pauses_s)
        if asked_s is not None:
            pause_s = max(pause_s, asked_s * random.uniform(1, 1.25))
        return pause_s if time.monotonic() + pause_s <= self._ends else None


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """What `Retry-After` says, in seconds or as a date; None where it says nothing that can be read."""
    value = headers.get("retry-after", "").strip()
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError):
        return None
