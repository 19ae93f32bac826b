"""Starts and stops the service on a running Ray cluster."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Mapping
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayTaskError
from ray.serve.schema import ApplicationStatus

from fusion.errors import BaseMismatchError, ConfigError
from fusion.versions.history import Versions
from serving.door import check_tokens
from serving.errors import StartError
from serving.neighbours import find_neighbours, refuse_conflicts, refuse_other_listener
from serving.options import ServiceOptions
from serving.proxies import Proxy, addresses, wait_until_ready
from serving.replica import Replica
from serving.status import APP_NAME, REPLICA
from serving.watch import newest_readable

logger = logging.getLogger(__name__)

_RETRY_AFTER_S = 1.0
_GRACE_S = 5.0
_MESSAGE_LINES = 6


def build_app(options: ServiceOptions) -> serve.Application:
    """The one deployment: replicas that do all of a request."""
    replicas: dict[str, Any]
    if options.replicas.min == options.replicas.max:
        replicas = {"num_replicas": options.replicas.min}
    else:
        replicas = {
            "autoscaling_config": {
                "min_replicas": options.replicas.min,
                "max_replicas": options.replicas.max,
                "target_ongoing_requests": max(1, options.max_batch_size // 2),
                "upscale_delay_s": 5,
            }
        }
    if options.replicas.per_node:
        replicas["max_replicas_per_node"] = options.replicas.per_node
    # so old and new overlap during an update, and no request is lost between them; a GPU has no room for both, nor has
    # a node that may hold so many
    overlaps = not options.num_gpus and not options.replicas.per_node
    wrap: Any = serve.deployment
    deployment = wrap(
        serve.ingress()(Replica),
        name=REPLICA,
        ray_actor_options={"num_cpus": options.num_cpus, "num_gpus": options.num_gpus},
        # A replica counts its predictions itself and answers 429 in our own shape, while health checks still get
        # through; Serve's own limits are higher, for bursts that outrun that.
        max_ongoing_requests=2 * options.max_queued_requests,
        max_queued_requests=2 * options.max_queued_requests,
        backpressure_config={"status_code": 429, "retry_after_s": _RETRY_AFTER_S},
        health_check_period_s=5,
        health_check_timeout_s=30,
        graceful_shutdown_timeout_s=options.request_timeout_s + _GRACE_S,
        graceful_shutdown_wait_loop_s=0.5,
        max_surge_percent=100 if overlaps else 0,
        logging_config={"enable_access_log": False},
        **replicas,
    )
    application: serve.Application = deployment.bind(options)
    return application


def start(options: ServiceOptions) -> list[str]:
    """Start the service, or update the running one. Returns where it answers, once it is ready on every proxy.

    What is refused changes nothing; what fails later, or is interrupted, is stopped.

    Raises:
        ConfigError: no cluster, the port is in use, or another application of the cluster has the name or the route.
        UnknownVersionError: the store has no version.
        BaseMismatchError: the base has no architecture, so there is no model to run.
        StartError: replicas did not start; names them and the reason.
    """
    if not ray.is_initialized():
        raise ConfigError("Ray is not running: call `ray.init` before starting the service")
    check_store(options)
    check_tokens(options)
    refuse_conflicts(options, options.address.open().url, find_neighbours())
    if not serve.status().proxies:  # else Serve itself holds the port, and this is an update
        check_port(options.host, options.port)
    refuse_other_listener(options)
    _warn_if_too_large(options)
    try:
        proxies = _deploy(options)
    except BaseException:  # from here on there may be something to stop, before there may be another one's
        stop(options.name)
        raise
    where = addresses(proxies, options.route)
    logger.info("serving at=%s", ",".join(where))
    return where


def _deploy(options: ServiceOptions) -> list[Proxy]:
    try:
        serve.start(
            http_options={
                "host": options.host,
                "port": options.port,
                # our own timeout comes first and answers in JSON; Serve's is for requests that even that could not end
                "request_timeout_s": options.request_timeout_s + _GRACE_S,
            }
        )
        target = serve.RunTarget(build_app(options), name=options.name, route_prefix=options.route)
        serve.run_many([target], wait_for_applications_running=False)
    except RayTaskError as error:  # of a proxy or of Serve's controller
        *_, last = str(error).strip().splitlines()
        raise StartError(f"Ray Serve did not start: {last.strip()}") from error
    deadline = time.monotonic() + options.start_timeout_s
    _wait_until_running(options.name, deadline)
    try:
        return wait_until_ready(options.host, options.port, options.route, deadline)
    except TimeoutError as late:
        raise StartError(f"the service was not ready after {options.start_timeout_s:g} s: {str(late)[:500]}") from late


def stop(name: str = APP_NAME, *, timeout_s: float = 60.0) -> None:
    """Stop the service of that name: `/readyz` turns 503, requests in flight finish (or `timeout_s` passes), then
    replicas stop."""
    if not ray.is_initialized():
        return
    if name in serve.status().applications:
        # so that load balancers see it in time: Serve would only refuse connections
        try:
            serve.get_deployment_handle(REPLICA, name).broadcast("drain").results(timeout_s=timeout_s)
        except Exception as error:
            logger.warning("a replica did not drain, stopping anyway: %s", error)
        serve.delete(name)
    if not serve.status().applications:  # else other applications of the cluster still need Serve
        serve.shutdown()


def check_store(options: ServiceOptions) -> None:
    """Raises `UnknownVersionError` or `BaseMismatchError` when there is nothing to serve."""
    manifest, _ = newest_readable(Versions(options.address.open()))
    if manifest.base.model_cfg is None or manifest.base.preprocess_cfg is None:
        raise BaseMismatchError(
            f"the base of {options.address.url} has no architecture (it was fused from plain weights): it can be "
            "exported but not served. Publish from a configuration that names `base.architecture`"
        )


def check_port(host: str, port: int) -> None:
    """Raises `ConfigError` when the port cannot be used. Serve itself would only retry, and mention it in its log."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port that was just closed is free
            probe.bind(address)
    except OSError as error:
        raise ConfigError(
            f"can't listen on {host}:{port} ({error.strerror or error}): choose another `serve.port`, "
            "or stop the process that uses it"
        ) from error


def _warn_if_too_large(options: ServiceOptions) -> None:
    # a warning, not an error: an autoscaling cluster may add nodes
    has = ray.cluster_resources()
    for resource, each in (("CPU", options.num_cpus), ("GPU", options.num_gpus)):
        if (needs := options.replicas.min * each) > has.get(resource, 0):
            logger.warning(
                "the service needs %g %s for %d replicas, the cluster has %g: waiting for more nodes",
                needs, resource, options.replicas.min, has.get(resource, 0),
            )  # fmt: skip


def _fits(options: ServiceOptions, has: Mapping[str, float]) -> bool:
    return has.get("CPU", 0) >= options.num_cpus and has.get("GPU", 0) >= options.num_gpus


def _wait_until_running(name: str, deadline: float) -> None:
    failed = (ApplicationStatus.DEPLOY_FAILED, ApplicationStatus.UNHEALTHY)
    while True:
        app = serve.status().applications.get(name)
        if app and app.status == ApplicationStatus.RUNNING:
            return
        if (app and app.status in failed) or time.monotonic() > deadline:
            raise StartError(f"the service did not start: {_what_is_wrong(app)}")
        time.sleep(0.2)


def _what_is_wrong(app: Any) -> str:
    if app is None:
        return "Serve has no such application"
    problems = [f"{app.status}"]
    for name, deployment in app.deployments.items():
        if deployment.status != "HEALTHY":
            last = [line for line in deployment.message.splitlines() if line.strip()][-_MESSAGE_LINES:]
            problems.append(f"{name} is {deployment.status}: " + " | ".join(last))
    return "; ".join(problems)
