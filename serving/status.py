"""The state of a service, for processes that did not start it. Imports no model."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

import ray

APP_NAME = "condu"
REPLICA = "Replica"


def find_service(store_url: str, *, timeout_s: float) -> dict[str, Any] | None:
    """The service of a store (`Store.url`) on this cluster, as JSON values; None if there is none.

    Returns: `status` of the Serve application, `replicas` (deployment to state to count), and `serving`: the
        `Replica.describe` of each of its replicas; empty while it starts; and `urls`, where it answers.
    """
    if not serve_runs():
        return None  # importing Serve to ask it would take seconds
    from ray import serve
    from ray.serve.schema import ApplicationStatus, ReplicaState

    app = serve.status().applications.get(APP_NAME)
    if app is None:
        return None
    serving: list[dict[str, Any]] = []
    if REPLICA in app.deployments and app.deployments[REPLICA].replica_states.get(ReplicaState.RUNNING):
        handle: Any = serve.get_deployment_handle(REPLICA, APP_NAME)
        serving = list(handle.broadcast("describe").results(timeout_s=timeout_s))
    if any(replica["store"] != store_url for replica in serving):
        return None
    replicas = {
        name: {ReplicaState(state).value: count for state, count in deployment.replica_states.items() if count}
        for name, deployment in app.deployments.items()
    }
    return {
        "status": ApplicationStatus(app.status).value,
        "replicas": replicas,
        "serving": serving,
        "urls": _where(serving),
    }


def serve_runs() -> bool:
    """Whether this cluster runs Serve, for whatever application. Does not import it."""
    actors: list[Any] = ray.util.list_named_actors(all_namespaces=True)
    return any(actor["namespace"] == "serve" for actor in actors)


def _where(serving: list[dict[str, Any]]) -> list[str]:
    """Where Serve's proxies answer, from what a replica was told to listen on."""
    from serving.proxies import addresses, find_proxies

    told = urlsplit(serving[0]["url"]) if serving else None
    return addresses(find_proxies(told.hostname, told.port)) if told and told.hostname and told.port else []
