"""Exponential back-off: how long to wait before each next attempt."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator


def delays_s(first_s: float, *, longest_s: float = math.inf, jitter: float = 0.0) -> Iterator[float]:
    """Seconds to wait, without end: `first_s`, then twice as long each time, up to `longest_s`.

    Args:
        jitter: every delay is shortened by a random share of up to this, so that callers that failed together don't
            retry together. 0 to 1.
    """
    delay_s = first_s
    while True:
        yield delay_s * random.uniform(1 - jitter, 1)
        delay_s = min(2 * delay_s, longest_s)
