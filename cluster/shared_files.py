"""Whether all nodes see one store, and those that train see the tasks' data. Checked before lanes start.

A folder that each node has for itself looks like a store to every one of them, and fails only once a worker has written
what the driver then does not find.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from cluster.nodes import ClusterNode, NodeAnswer, ask_nodes, living_nodes
from fusion.errors import BlobNotFoundError, ConduError, ConfigError
from fusion.store.address import StoreAddress
from training.lanes.capacity import LaneOptions, Node, lane_nodes


def check_shared_files(ray: Any, address: StoreAddress, sources: Sequence[str], lanes: LaneOptions) -> None:
    """Compare what the nodes of a cluster see. A cluster of one node has nothing to compare.

    Args:
        address: of the store, which every node must see: the queue and the fusion actor may run anywhere.
        sources: the tasks' data, as absolute paths or URLs; local ones must exist wherever a lane may run.
    Raises: ConfigError that names each node, what it lacks, and what to do.
    """
    nodes = living_nodes(ray)
    if len(nodes) < 2:
        return
    problems = store_problems(ray, nodes, address)
    problems += data_problems(ask_nodes(ray, training_nodes(nodes, lanes), missing_sources, local_paths(sources)))
    if problems:
        raise ConfigError("the nodes of this cluster do not see the same files:\n" + "\n".join(problems))


def training_nodes(nodes: Sequence[ClusterNode], lanes: LaneOptions) -> list[ClusterNode]:
    """Those whose labels and size let a worker of a lane start."""
    return [node for node in nodes if lane_nodes(lanes, [Node(node.resources, node.labels)])]


def store_problems(ray: Any, nodes: Sequence[ClusterNode], address: StoreAddress) -> list[str]:
    """One line per node that does not read what this process writes into the store. Raises the store's own errors."""
    address = address.resolved()
    store, nonce = address.open(), secrets.token_hex(16)
    key = f"probe/{nonce}"
    store.put_if_absent(key, nonce.encode())
    try:
        answers = ask_nodes(ray, nodes, read_probe, address, key)
    finally:
        with suppress(ConduError):
            store.delete(key)
    lines = []
    for answer in answers:
        if answer.problem:
            lines.append(f"  {answer.node} can't read the store {address}: {answer.problem}")
        elif answer.value != nonce:
            lines.append(
                f"  {answer.node} has another store at {address}: what is written here is not there. Use a file system "
                "that all nodes mount at this path, or s3://"
            )
    return lines


def data_problems(answers: Sequence[NodeAnswer]) -> list[str]:
    """One line per node that lacks data."""
    lines = []
    for answer in answers:
        if answer.problem:
            lines.append(f"  {answer.node} did not say whether it has the tasks' data: {answer.problem}")
        elif answer.value:
            lines.append(
                f"  {answer.node} lacks {', '.join(answer.value)}: put the data on every node that trains, on a shared "
                "file system or on s3://, or keep lanes to the nodes that have it with train.labels"
            )
    return lines


def local_paths(sources: Sequence[str]) -> list[str]:
    """Those of the sources that are paths on a node."""
    paths = []
    for source in sources:
        if source.startswith("file://"):
            paths.append(unquote(urlsplit(source).path))
        elif source.startswith("/"):
            paths.append(source)
    return paths


def read_probe(address: StoreAddress, key: str) -> str | None:
    """On a node: what the store holds under a key, or None."""
    try:
        return address.open().get(key).decode()
    except BlobNotFoundError:
        return None


def missing_sources(paths: Sequence[str]) -> list[str]:
    """On a node: the paths that do not exist there."""
    return [path for path in paths if not Path(path).exists()]
