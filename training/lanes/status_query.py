"""How the lanes of a store stand, asked from a process that did not start them."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError

from fusion.actor_names import NAMESPACE, actor_name
from training.lanes.task_queue import TaskStatus

_KIND = "queue-v2"


def queue_prefix(store_url: str) -> str:
    """How the names of a store's queue actors begin (`Store.url`). Every run has one queue."""
    return f"{actor_name(_KIND, store_url)}-"


def find_statuses(store_url: str, *, timeout_s: float) -> list[list[TaskStatus]]:
    """The tasks that lanes of this cluster were given for a store (`Store.url`), one list per run.

    A queue that does not answer within `timeout_s` is left out: its run is ending.
    """
    found: list[Any] = ray.util.list_named_actors(all_namespaces=True)
    names = sorted(actor["name"] for actor in found if actor["namespace"] == NAMESPACE)
    runs: list[list[TaskStatus]] = []
    for name in names:
        if name.startswith(queue_prefix(store_url)):
            with suppress(ValueError, GetTimeoutError, RayActorError):
                queue: Any = ray.get_actor(name, namespace=NAMESPACE)
                statuses: Any = ray.get(queue.statuses.remote(), timeout=timeout_s)
                runs.append(statuses)
    return runs
