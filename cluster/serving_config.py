"""From a configuration to a service that runs."""

from __future__ import annotations

import logging
from dataclasses import replace

from cluster.config import Config
from serving.options import ServiceOptions


def start_service(options: ServiceOptions) -> list[str]:
    """Start a service in the open Ray session. Returns where it answers; raises what `serving.app.start` raises."""
    from serving.app import start

    logging.getLogger("ray.serve").setLevel(logging.WARNING)  # importing Serve sets it to INFO
    return start(options)


def service_options(config: Config, *, port: int | None = None) -> ServiceOptions:
    """What `condu serve CONFIG` starts. Raises `ConfigError` for choices that can't work together."""
    options = ServiceOptions(address=config.address, **vars(config.predict), **vars(config.serve))
    return replace(options, port=port) if port else options
