"""Where a service listens: Serve has a proxy on the head and on nodes with a replica, not on every node.

So the node of whoever starts the service, or asks for its state, may have none. What listens on loopback is reached
from its own node alone, and is asked there.
"""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Sequence
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from typing import Any

import ray
from ray import serve
from ray.serve.schema import ProxyStatus
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from serving.loopback import is_loopback

_ASK_TIMEOUT_S = 5.0
_NODE_TIMEOUT_S = 30.0
"""For a process to start on another node and ask there."""


@dataclass(frozen=True)
class Proxy:
    """One of Serve's proxies: its node, and the address by which it is reached."""

    node: str
    node_name: str
    host: str
    port: int
    loopback: bool

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"


def find_proxies(host: str, port: int) -> list[Proxy]:
    """The healthy proxies of a service that listens on `host:port`, this node's first.

    An address that stands for all of a node's (`0.0.0.0`, `::`) is replaced by the node's own.
    """
    here = ray.get_runtime_context().get_node_id()
    nodes: dict[str, Any] = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}
    found = []
    for node_id, status in serve.status().proxies.items():
        if status == ProxyStatus.HEALTHY and node_id in nodes:
            node = nodes[node_id]
            own = node["NodeManagerAddress"] if _is_wildcard(host) else host
            found.append(Proxy(node_id, node["NodeManagerHostname"], own, port, is_loopback(own)))
    return sorted(found, key=lambda proxy: (proxy.node != here, proxy.node_name, proxy.node))


def addresses(proxies: Sequence[Proxy], route: str) -> list[str]:
    """Where a service answers, for people; the node is named where the address is of use on that node alone."""
    several = len({proxy.node for proxy in proxies}) > 1
    urls = [f"{proxy}{route.rstrip('/')}" for proxy in proxies]
    pairs = zip(proxies, urls, strict=True)
    return [f"{url} (on {proxy.node_name})" if proxy.loopback and several else url for proxy, url in pairs]


def wait_until_ready(host: str, port: int, route: str, deadline: float) -> list[Proxy]:
    """Wait until every healthy proxy, and at least one, answers `/readyz` with 200. Returns them.

    Args:
        route: below which the service answers.
        deadline: by `time.monotonic()`.
    Raises: TimeoutError with the last answer.
    """
    path = f"{route.rstrip('/')}/readyz"
    last = "Serve has no healthy proxy"
    while time.monotonic() < deadline:
        proxies = find_proxies(host, port)
        answers = [_ask(proxy, path) for proxy in proxies]
        if proxies and all(status == 200 for status, _ in answers):
            return proxies
        for proxy, (status, body) in zip(proxies, answers, strict=True):
            if status != 200:
                last = f"{proxy}{path} on {proxy.node_name}: {body}"
        time.sleep(0.2)
    raise TimeoutError(last)


def _ask(proxy: Proxy, path: str) -> tuple[int, str]:
    """Status and body of a path; 0 where nothing answers. Asked on the proxy's own node where only that can."""
    if not proxy.loopback or proxy.node == ray.get_runtime_context().get_node_id():
        return get(proxy.host, proxy.port, path)
    remote: Any = ray.remote(num_cpus=0, max_retries=0)(get)
    there = NodeAffinitySchedulingStrategy(proxy.node, soft=False)
    try:
        answer = remote.options(scheduling_strategy=there).remote(proxy.host, proxy.port, path)
        found: tuple[int, str] = ray.get(answer, timeout=_NODE_TIMEOUT_S)
    except Exception as error:  # the node may have gone since it was listed
        return 0, f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
    return found


def get(host: str, port: int, path: str) -> tuple[int, str]:
    """Status and body of one request without a client library; 0 and the reason where nothing answers."""
    connection = HTTPConnection(host, port, timeout=_ASK_TIMEOUT_S)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode(errors="replace")
    except (OSError, HTTPException) as error:
        return 0, f"{type(error).__name__}: {error}"
    finally:
        connection.close()


def _is_wildcard(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False
