"""What `condu doctor --cluster` asks: are the nodes alike, do they see the same files, where does a service listen."""

from __future__ import annotations

import os
import platform
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from cluster.config import Config
from cluster.doctor_check import MIN_FREE_BYTES, Check
from cluster.nodes import ClusterNode, ask_nodes, living_nodes
from cluster.output import human_bytes
from cluster.shared_files import data_problems, local_paths, missing_sources, store_problems, training_nodes
from fusion.errors import ConduError
from fusion.store.address import StoreAddress
from fusion.store.blobs import BlobRef
from fusion.store.node_cache import default_cache_folder
from fusion.tensors import sha256_file
from fusion.versions.history import Versions

_PACKAGES = ("ray", "condu", "torch")
_MAX_SKEW_S = 60.0
"""S3 refuses requests at 15 minutes. Ages and alerts are wrong long before that."""


@dataclass(frozen=True)
class NodeReport:
    """What one node says of itself.

    Attributes:
        clock: Unix seconds.
        free_bytes: on the disk of its node cache.
        base: first 12 digits of the sha256 of the base that it reads; None where nothing is published.
    """

    python: str
    packages: dict[str, str]
    clock: float
    free_bytes: int
    gpus: tuple[str, ...]
    base: str | None


_Told = Sequence[tuple[ClusterNode, NodeReport]]


def check_cluster(ray: Any, config: Config) -> list[Check]:
    """Ask every living node. The store is written to, and cleaned up.

    Args:
        ray: the module, connected to the cluster.
        config: what the cluster shall run.
    """
    nodes = living_nodes(ray)
    address = config.address.resolved()
    base, problems = None, []
    try:
        newest = Versions(address.open()).newest()
        base = newest.base.weights if newest else None
        problems = store_problems(ray, nodes, address)
    except ConduError as error:
        problems = [str(error)]
    checks = [_token(), _check("shared", f"{address}, as {len(nodes)} nodes see it", problems)]
    training = training_nodes(nodes, config.train)
    paths = local_paths([*(task.data for task in config.tasks), *(task.data for task in config.unseen)])
    lacks = data_problems(ask_nodes(ray, training, missing_sources, paths))
    checks.append(_check("data", f"{len(paths)} local paths, on the {len(training)} nodes that can train", lacks))
    asked = time.time()
    answers = ask_nodes(ray, nodes, report_node, address, base)
    answered = time.time()
    told = [(answer.node, answer.value) for answer in answers if answer.problem is None]
    silent = [f"{answer.node}: {answer.problem}" for answer in answers if answer.problem]
    checks.append(_check("nodes", ", ".join(f"{node} {_has(node)}" for node in nodes), silent))
    checks.append(_alike("python", told, lambda report: report.python))
    for name in _PACKAGES:
        checks.append(_alike(name, told, lambda report, name=name: report.packages[name]))  # type: ignore[misc]
    if base is not None:
        checks.append(_alike("base", told, lambda report: str(report.base)))
    return [*checks, _clocks(told, asked, answered), _disks(told), _gpus(told, config), _proxies(config)]


def report_node(address: StoreAddress, base: BlobRef | None) -> NodeReport:
    """On a node: what it is."""
    import torch

    folder = address.cache_folder or default_cache_folder()
    while not folder.exists():
        folder = folder.parent
    gpus = range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
    return NodeReport(
        python=platform.python_version(),
        packages={name: _version(name) for name in _PACKAGES},
        clock=time.time(),
        free_bytes=shutil.disk_usage(folder).free,
        gpus=tuple(torch.cuda.get_device_name(number) for number in gpus),
        base=sha256_file(address.open_cache().path(base))[:12] if base else None,
    )


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _check(what: str, found: str, problems: Sequence[str]) -> Check:
    return Check(what, found, "\n  ".join(problem.strip() for problem in problems) or None)


def _has(node: ClusterNode) -> str:
    return f"({node.resources.get('CPU', 0):g} CPU, {node.resources.get('GPU', 0):g} GPU)"


def _alike(what: str, told: _Told, of: Callable[[NodeReport], str]) -> Check:
    """Whether all nodes say the same."""
    groups: dict[str, list[str]] = {}
    for node, report in told:
        groups.setdefault(of(report), []).append(str(node))
    problem = None
    if len(groups) > 1:
        each = "; ".join(f"{value} on {', '.join(hosts)}" for value, hosts in sorted(groups.items()))
        problem = f"the nodes differ ({each}): give all of them the same image"
    return Check(what, ", ".join(sorted(groups)) or "no node answered", problem)


def _clocks(told: _Told, asked: float, answered: float) -> Check:
    """How far each node's clock is from this one's, at least: a node may have looked at any moment of the question."""
    skews = {str(node): max(asked - report.clock, report.clock - answered, 0.0) for node, report in told}
    worst = max(skews.values(), default=0.0)
    wrong = [f"{node} is {skew:.0f} s off: set its clock (NTP)" for node, skew in skews.items() if skew > _MAX_SKEW_S]
    return _check("clocks", f"at least {worst:.0f} s apart" if worst >= 1 else "agree", wrong)


def _disks(told: _Told) -> Check:
    low = [
        f"{node} has {human_bytes(report.free_bytes)} free for its cache: give it a larger disk, or set `cache`"
        for node, report in told
        if report.free_bytes < MIN_FREE_BYTES
    ]
    least = min((report.free_bytes for _, report in told), default=0)
    return _check("caches", f"at least {human_bytes(least)} free on every node", low)


def _gpus(told: _Told, config: Config) -> Check:
    kinds = sorted({name for _, report in told for name in report.gpus})
    needs = [name for name in ("train", "serve") if getattr(config, name).num_gpus]
    problems = [f"{', '.join(needs)}: num_gpus is above 0, and no node sees a GPU"] if needs and not kinds else []
    problems += [
        f"Ray counts {node.resources['GPU']:g} GPUs on {node}, and torch sees {len(report.gpus)}: driver or image"
        for node, report in told
        if node.resources.get("GPU", 0) > len(report.gpus)
    ]
    return _check("gpus", ", ".join(kinds) or "none", problems)


def _proxies(config: Config) -> Check:
    from serving.status import serve_runs

    if not serve_runs():  # importing Serve to ask it would take seconds
        return Check("proxies", f"no service runs; one would listen on {config.serve.host}:{config.serve.port}")
    from serving.proxies import addresses, find_proxies

    found = find_proxies(config.serve.host, config.serve.port)
    lonely = len(found) > 1 and found[0].loopback
    problem = "each is reached from its own node alone: set serve.host to 0.0.0.0 behind a gateway" if lonely else None
    return Check("proxies", ", ".join(addresses(found, config.serve.route)) or "none is healthy", problem)


def _token() -> Check:
    mode = os.environ.get("RAY_AUTH_MODE", "not set")
    problem = (
        None
        if mode == "token"
        else (
            "whoever reaches the cluster's ports can run code on it: start every node with RAY_AUTH_MODE=token and one "
            "RAY_AUTH_TOKEN"
        )
    )
    return Check("token", f"RAY_AUTH_MODE is {mode}", problem)
