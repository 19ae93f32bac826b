"""Waiting for a store that stopped to answer: what a publisher does, who has minutes, and a request never does.

One request's own retries end within seconds. Publishing may begin again at any point (that is the commit rule), so it
does, until the store has been away for `OUTAGE_S`.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from fusion.errors import StoreUnavailableError

OUTAGE_S = 120.0
LONGEST_PAUSE_S = 15.0

_logger = logging.getLogger(__name__)
_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


def waits_for_the_store(call: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """Begin `call` again, after 1, 2, 4, … 15 s, while it ends in `StoreUnavailableError`. It has to bear repeating."""

    @functools.wraps(call)
    def waiting(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        away_since, pause_s = None, 1.0
        while True:
            try:
                return call(*args, **kwargs)
            except StoreUnavailableError as error:
                away_since = away_since or time.monotonic()
                if time.monotonic() + pause_s > away_since + OUTAGE_S:
                    raise
                _logger.warning("the store is away, waiting %.0f s to begin again: %s", pause_s, error)
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    return waiting
