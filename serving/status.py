"""The state of a service, for processes that did not start it. Imports no model."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

import ray

APP_NAME = "condu"
REPLICA = "Replica"


def find_service(store_url: str, *, timeout_s: float) -> dict[str, Any] | None:
    """The service of a store (`Store.url`) on this cluster, as JSON values; None if there is none.

    Returns: `name`, `route` and `status` of the Serve application, `replicas` (deployment to state to count), and
        `serving`: the `Replica.describe` of each of its replicas; empty while it starts, when it is not known of which
        store it is; and `urls`, where it answers.
    """
    if not serve_runs():
        return None  # importing Serve to ask it would take seconds
    from ray import serve

    details = application_details()
    starting: dict[str, Any] | None = None
    for name, app in sorted(serve.status().applications.items()):
        if REPLICA in app.deployments:
            found = _describe(name, details.get(name, {}).get("route_prefix") or "/", app, timeout_s)
            if not found["serving"]:
                starting = starting or found
            elif all(replica["store"] == store_url for replica in found["serving"]):
                return found
    return starting


def _describe(name: str, route: str, app: Any, timeout_s: float) -> dict[str, Any]:
    """What is known of an application of ours."""
    from ray.serve.schema import ApplicationStatus, ReplicaState

    runs = app.deployments[REPLICA].replica_states.get(ReplicaState.RUNNING)
    serving = describe_replicas(name, timeout_s=timeout_s) if runs else []
    replicas = {
        deployment: {ReplicaState(state).value: count for state, count in told.replica_states.items() if count}
        for deployment, told in app.deployments.items()
    }
    return {
        "name": name,
        "route": route,
        "status": ApplicationStatus(app.status).value,
        "replicas": replicas,
        "serving": serving,
        "urls": _where(serving, route),
    }


def application_details() -> dict[str, Any]:
    """What Serve tells of each of this cluster's applications, by name; empty where it does not run."""
    from ray.serve.context import _get_global_client

    client = _get_global_client(raise_if_no_controller_running=False)
    return dict(client.get_serve_details()["applications"]) if client else {}


def describe_replicas(name: str, *, timeout_s: float) -> list[dict[str, Any]]:
    """The `Replica.describe` of each replica of an application of ours. Raises what Serve and the replicas raise."""
    from ray import serve

    handle: Any = serve.get_deployment_handle(REPLICA, name)
    return list(handle.broadcast("describe").results(timeout_s=timeout_s))


def serve_runs() -> bool:
    """Whether this cluster runs Serve, for whatever application. Does not import it."""
    actors: list[Any] = ray.util.list_named_actors(all_namespaces=True)
    return any(actor["namespace"] == "serve" for actor in actors)


def _where(serving: list[dict[str, Any]], route: str) -> list[str]:
    """Where Serve's proxies answer, from what a replica was told to listen on."""
    from serving.proxies import addresses, find_proxies

    told = urlsplit(serving[0]["url"]) if serving else None
    return addresses(find_proxies(told.hostname, told.port), route) if told and told.hostname and told.port else []
