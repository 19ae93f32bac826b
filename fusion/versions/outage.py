"""Waiting out a store that has stopped answering: a publisher has minutes to spare for it, a request never has.

The retries of one request end within seconds. Publishing may be restarted at any point (the commit rule allows it), so
it is restarted until the store has been away for `OUTAGE_S`.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from fusion.backoff import delays_s
from fusion.errors import StoreUnavailableError

OUTAGE_S = 120.0
LONGEST_PAUSE_S = 15.0

_logger = logging.getLogger(__name__)
_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


def waits_for_the_store(call: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """Repeat `call` after 1, 2, 4, … 15 s for as long as it raises `StoreUnavailableError`. It must be repeatable."""

    @functools.wraps(call)
    def waiting(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        away_since, pauses_s = None, delays_s(1.0, longest_s=LONGEST_PAUSE_S)
        while True:
            try:
                return call(*args, **kwargs)
            except StoreUnavailableError as error:
                away_since, pause_s = away_since or time.monotonic(), next(pauses_s)
                if time.monotonic() + pause_s > away_since + OUTAGE_S:
                    raise
                _logger.warning("the store is away, trying again in %.0f s: %s", pause_s, error)
            time.sleep(pause_s)

    return waiting
