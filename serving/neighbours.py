"""What else Serve runs on a cluster. Its applications share its proxies, so names, routes and one port are shared out:
what would take another one's place is refused by name, before anything changes."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

from ray.serve.context import _get_global_client
from ray.serve.schema import ApplicationStatus

from fusion.errors import ConfigError
from serving.loopback import is_loopback
from serving.options import ServiceOptions
from serving.status import REPLICA, application_details, describe_replicas

logger = logging.getLogger(__name__)

_ANSWER_TIMEOUT_S = 20.0


@dataclass(frozen=True)
class Neighbour:
    """An application of Serve: its route, and the stores that its replicas serve; None where it is not condu's."""

    route: str | None
    stores: frozenset[str] | None


def find_neighbours() -> dict[str, Neighbour]:
    """The applications of this cluster, by name; those that are being deleted are left out."""
    found = {}
    for name, app in application_details().items():
        if app["status"] != ApplicationStatus.DELETING:
            found[name] = Neighbour(app["route_prefix"], _stores(name) if REPLICA in app["deployments"] else None)
    return found


def refuse_conflicts(options: ServiceOptions, store_url: str, neighbours: Mapping[str, Neighbour]) -> None:
    """Raises `ConfigError` when another application has the name or the route, or serves the same store.

    Args:
        options: the service that is to start. One that has its name and serves its store is itself.
        store_url: of its store (`Store.url`).
    """
    own = neighbours.get(options.name)
    if own and own.stores is None:
        raise ConfigError(
            f"serve.name: this cluster's application {options.name!r} is not a condu service: choose another name"
        )
    if own and (others := sorted((own.stores or frozenset()) - {store_url})):
        raise ConfigError(
            f"this cluster already serves {', '.join(others)} under the name {options.name!r}, and {store_url} would "
            "take its place: give this service a name and a route of its own (serve.name, serve.route), or stop that "
            "one first (Ctrl-C where it was started)"
        )
    for name, neighbour in neighbours.items():
        if name == options.name:
            continue
        if store_url in (neighbour.stores or ()):
            raise ConfigError(
                f"{store_url} is served on this cluster already, by the service {name!r} at {neighbour.route}: stop "
                f"that one first, or set serve.name: {name} to update it"
            )
        if neighbour.route == options.route:
            raise ConfigError(
                f"serve.route: {options.route} is the route of this cluster's application {name!r}: choose another one"
            )


def refuse_other_listener(options: ServiceOptions) -> None:
    """Raises `ConfigError` if Serve, started by somebody else, listens on another port, or on more than the loopback
    that `host` names."""
    client = _get_global_client(raise_if_no_controller_running=False)
    if client is None:
        return
    host, port = client.http_config.host or "", client.http_config.port
    if port != options.port:
        raise ConfigError(
            f"serve.port is {options.port}, but Serve runs on this cluster already and listens on port {port} for all "
            f"its services: set serve.port: {port}, and a serve.route of its own for this service"
        )
    if options.on_loopback and not is_loopback(host) and not options.asks_for_tokens:
        raise ConfigError(
            f"serve.host is {options.host}, but Serve runs on this cluster already and listens on {host}: "
            "set serve.auth to tokens or none, or stop Serve (`serve shutdown`)"
        )


def _stores(name: str) -> frozenset[str]:
    try:
        return frozenset(one["store"] for one in describe_replicas(name, timeout_s=_ANSWER_TIMEOUT_S))
    except Exception as error:  # it is starting, or broken: starting it again is what repairs it
        logger.warning("the service %s does not say which store it serves: %s", name, error)
        return frozenset()
