"""From a configuration to a service that runs."""

from __future__ import annotations

import logging

from cluster.config import Config
from serving.options import ServeOptions


def start_service(options: ServeOptions) -> None:
    """Start a service in the Ray session that is open. Raises what `serving.app.start` raises."""
    from serving.app import start

    logging.getLogger("ray.serve").setLevel(logging.WARNING)  # importing Serve sets it to INFO
    start(options)


def serve_options(config: Config, *, port: int | None = None) -> ServeOptions:
    """What `condu serve CONFIG` starts. Raises `ConfigError` for choices that can't work together."""
    serve = config.serve
    return ServeOptions(
        address=config.address,
        top_k=config.predict.top_k,
        host=serve.host,
        port=port or serve.port,
        min_replicas=serve.replicas.min,
        max_replicas=serve.replicas.max,
        num_cpus=serve.num_cpus,
        num_gpus=serve.num_gpus,
        cached_experts=serve.cached_experts,
        max_batch_size=serve.max_batch_size,
        batch_wait_s=serve.batch_wait_s,
        poll_s=serve.poll_s,
        request_timeout_s=serve.request_timeout_s,
        max_queued_requests=serve.max_queued_requests,
    )
