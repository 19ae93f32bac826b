"""Where the lines of a replica go."""

from __future__ import annotations

import logging


def log_with_serve() -> None:
    """Send what `serving` and `fusion` log to the replica's own log: Serve configures its logger and no other.

    The list of handlers is shared, not copied, because Serve empties and refills it when it configures a replica again.
    """
    serves = logging.getLogger("ray.serve")
    for package in ("serving", "fusion"):
        ours = logging.getLogger(package)
        ours.handlers, ours.propagate = serves.handlers, False
        ours.setLevel(logging.INFO)
