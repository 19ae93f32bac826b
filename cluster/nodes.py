"""Asks every living node of a cluster one question, by a task that reserves nothing. A silent node is an answer too."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fusion.errors import own_cause

ANSWER_TIMEOUT_S = 120.0
"""A loaded node takes half a minute to start a process that imports Ray."""


@dataclass(frozen=True)
class ClusterNode:
    """A living node: Ray's id for it, how people know it, what it has."""

    id: str
    host: str
    address: str
    resources: Mapping[str, float]
    labels: Mapping[str, str]

    def __str__(self) -> str:
        return self.host if self.host == self.address else f"{self.host} ({self.address})"


@dataclass(frozen=True)
class NodeAnswer:
    """What one node said, or why it said nothing."""

    node: ClusterNode
    value: Any = None
    problem: str | None = None


def living_nodes(ray: Any) -> list[ClusterNode]:
    return [
        ClusterNode(
            node["NodeID"],
            node["NodeManagerHostname"],
            node["NodeManagerAddress"],
            node["Resources"],
            node.get("Labels") or {},
        )
        for node in ray.nodes()
        if node["Alive"]
    ]


def ask_nodes(
    ray: Any,
    nodes: Sequence[ClusterNode],
    question: Callable[..., Any],
    *arguments: Any,
    timeout_s: float = ANSWER_TIMEOUT_S,
) -> list[NodeAnswer]:
    """Call a function of a module on each node, all at once. Raises nothing that a node is to blame for.

    Args:
        question: a function that the nodes can import. It runs there in a process of its own.
        arguments: small values, the same for all.
        timeout_s: for all together.
    Returns: one answer per node, in order.
    """
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    remote = ray.remote(num_cpus=0, max_retries=0)(question)
    asked = [
        remote.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False)).remote(*arguments)
        for node in nodes
    ]
    answered, silent = ray.wait(asked, num_returns=len(asked), timeout=timeout_s) if asked else ([], [])
    for one in silent:
        ray.cancel(one, force=True)
    return [
        _answer(ray, node, one) if one in answered else NodeAnswer(node, problem=f"no answer within {timeout_s:.0f} s")
        for node, one in zip(nodes, asked, strict=True)
    ]


def _answer(ray: Any, node: ClusterNode, one: Any) -> NodeAnswer:
    try:
        return NodeAnswer(node, ray.get(one))
    except Exception as error:  # a node without the packages, one that dies: whatever it is, it is that node's answer
        cause = own_cause(error) or getattr(error, "cause", None) or error
        line = next(iter(str(cause).strip().splitlines()), "")
        return NodeAnswer(node, problem=f"{type(cause).__name__}: {line}"[:400])
