"""A cluster runs one service: another store's is refused by name, before it would replace the one that answers."""

from __future__ import annotations

import logging
from typing import Any

from ray import serve

from fusion.errors import ConfigError
from serving.status import APP_NAME

logger = logging.getLogger(__name__)

_ANSWER_TIMEOUT_S = 20.0


def refuse_other_store(store_url: str) -> None:
    """Raises `ConfigError` when the service that runs on this cluster serves another store than `store_url`."""
    if APP_NAME not in serve.status().applications:
        return
    handle: Any = serve.get_app_handle(APP_NAME)
    try:
        served = {replica["store"] for replica in handle.broadcast("describe").results(timeout_s=_ANSWER_TIMEOUT_S)}
    except Exception as error:  # it is starting, or broken: starting it again is what repairs it
        logger.warning("the running service does not say which store it serves, and is replaced: %s", error)
        return
    if others := sorted(served - {store_url}):
        raise ConfigError(
            f"this cluster already serves {', '.join(others)}, and {store_url} would take its place: stop that service "
            "first (Ctrl-C where it was started, or `serve shutdown`), or use another cluster"
        )
