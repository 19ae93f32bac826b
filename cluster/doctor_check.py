"""The result of one check of `condu doctor`."""

from __future__ import annotations

from dataclasses import dataclass

MIN_FREE_BYTES = 2 << 30
"""What the node cache needs free, at the least."""


@dataclass(frozen=True)
class Check:
    """What was looked at, and found. `problem` says what is wrong and how to fix it, or is None."""

    what: str
    found: str
    problem: str | None = None
