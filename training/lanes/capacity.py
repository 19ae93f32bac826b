"""What a lane asks of a cluster, and how many fit: decided before anything starts, since Ray waits forever."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt

from fusion.errors import ConfigError
from fusion.options import Options


@dataclass(frozen=True)
class LaneOptions(Options):
    """How tasks are spread over a cluster. Raises `ConfigError` for choices that can't work."""

    lanes: Annotated[int, Ge(1)] | Literal["auto"] = "auto"
    """Tasks that train at once. `auto`: as many as fit what is free when the run starts."""
    workers: Annotated[int, Ge(1)] = 1
    """Data-parallel workers of one lane, which share every batch."""
    num_cpus: Annotated[float, Gt(0)] = 1.0
    """Cores per worker, and the threads it computes with."""
    num_gpus: Annotated[float, Ge(0)] = 0.0
    """GPUs per worker. A fraction shares one between lanes (with `workers: 1`)."""
    memory_gib: Annotated[float, Gt(0)] | None = None
    """Memory that Ray reserves per worker, GiB. It is not a limit. Null: none is reserved."""
    accelerator_type: str | None = None
    """Only on nodes with this accelerator, such as `A100`. Needs `num_gpus`."""
    labels: Mapping[str, str] | None = None
    """Only on nodes with these labels."""
    num_loader_threads: Annotated[int, Ge(0)] = 0
    """Threads per worker that decode the next batch. Useful where a GPU waits for images. 0: none; 2 for data that is
    read in blocks, 16 for files on S3."""
    max_attempts: Annotated[int, Ge(1)] = 3
    """Starts of one task in one run before it counts as failed."""
    startup_timeout_s: Annotated[float, Gt(0)] = 600.0
    """How long the first lane may wait for its resources."""
    autoscaling: bool = False
    """The cluster grows on demand: a lane may wait for nodes that are not there yet. Needs a number of `lanes`."""
    quiet: bool = True
    """Log only warnings and errors of Ray Train."""

    def contradictions(self) -> list[str]:
        problems = super().contradictions()
        if self.workers > 1 and 0 < self.num_gpus < 1:
            problems.append(
                f"num_gpus {self.num_gpus} with workers {self.workers}: NCCL refuses two workers of a lane on one GPU. "
                "Use workers: 1, or whole GPUs"
            )
        if self.num_gpus == 0 and self.accelerator_type:
            problems.append(f"accelerator_type {self.accelerator_type!r} has no effect with num_gpus: 0")
        if self.autoscaling and self.lanes == "auto":
            problems.append("lanes: auto counts what the cluster has now: with autoscaling, give a number of lanes")
        return problems

    def demand(self) -> dict[str, float]:
        """Ray resources of one worker."""
        demand = {"CPU": self.num_cpus}
        if self.num_gpus:
            demand["GPU"] = self.num_gpus
        if self.memory_gib:
            demand["memory"] = float(round(self.memory_gib * 2**30))  # Ray takes whole bytes only
        return demand


@dataclass(frozen=True)
class Node:
    """One node's resources, busy or free, and its labels."""

    resources: Mapping[str, float]
    labels: Mapping[str, str]


def lanes_that_fit(
    options: LaneOptions,
    nodes: Sequence[Node],
    free: Mapping[str, float],
    num_tasks: int,
    *,
    reserved: Mapping[str, float] | None = None,
) -> int:
    """Number of lanes to start, at least 1.

    Args:
        nodes: the living nodes.
        free: what is free in the whole cluster now. It caps `auto`; a given number of lanes may wait.
        num_tasks: never more lanes than tasks.
        reserved: what one other actor of this run holds, whether or not `free` shows it yet.
    Raises:
        ConfigError: one lane would not fit even an idle cluster; the message names the missing resource.
    """
    reserved = reserved or {}
    wanted = num_tasks if options.lanes == "auto" else min(options.lanes, num_tasks)
    if options.autoscaling:
        return wanted
    fitting = _fitting(options, nodes)
    if not fitting:
        raise ConfigError(f"train.labels: no node of the cluster has the labels {dict(options.labels or {})}")
    workers = workers_beside(options, nodes, {})
    if workers < options.workers:
        raise ConfigError(_shortage(options, _demand(options), fitting, workers))
    workers = workers_beside(options, nodes, reserved)
    if options.lanes == "auto":
        total = {name: sum(node.resources.get(name, 0.0) for node in nodes) for name in {*free, *reserved}}
        left = {name: min(free.get(name, 0.0), total[name] - reserved.get(name, 0.0)) for name in total}
        workers = min(workers, _times(options.demand(), left))
    return max(1, min(wanted, workers // options.workers))


def workers_beside(options: LaneOptions, nodes: Sequence[Node], reserved: Mapping[str, float]) -> int:
    """Workers of lanes that an idle cluster holds while some one node gives `reserved` to another actor.

    That actor is assumed to be where it costs the fewest workers. 0 when no node can give it what it reserves.
    """
    demand, fitting = _demand(options), _fitting(options, nodes)
    workers = sum(_times(demand, node.resources) for node in fitting)
    losses = []
    for node in nodes:
        left = {**node.resources, **{name: node.resources.get(name, 0.0) - need for name, need in reserved.items()}}
        if min(left.values(), default=0.0) >= 0:
            losses.append(_times(demand, node.resources) - _times(demand, left) if node in fitting else 0)
    return workers - min(losses, default=workers)


def _demand(options: LaneOptions) -> dict[str, float]:
    accelerator = {f"accelerator_type:{options.accelerator_type}": 0.001} if options.accelerator_type else {}
    return {**options.demand(), **accelerator}


def lane_nodes(options: LaneOptions, nodes: Sequence[Node]) -> list[Node]:
    """The nodes on which a worker of a lane may run."""
    demand = _demand(options)
    return [node for node in _fitting(options, nodes) if _times(demand, node.resources)]


def _fitting(options: LaneOptions, nodes: Sequence[Node]) -> list[Node]:
    return [node for node in nodes if _has_labels(node, options.labels or {})]


def _shortage(options: LaneOptions, demand: Mapping[str, float], nodes: Sequence[Node], workers: int) -> str:
    """Why one lane can't be placed, in the words of its scarcest resource."""
    for name, need in demand.items():
        best = max(node.resources.get(name, 0.0) for node in nodes)
        if best < need:
            return (
                f"training needs {_amount(name, need)} per worker, the largest node of this cluster has "
                f"{_amount(name, best)}: ask for less, add a node, or set autoscaling if the cluster grows on demand"
            )
    return (
        f"one lane needs {options.workers} workers with {', '.join(_amount(*item) for item in demand.items())} each, "
        f"this cluster holds {workers} of them: use fewer workers, or add nodes"
    )


def _amount(name: str, value: float) -> str:
    if name.startswith("accelerator_type:"):
        kind = name.partition(":")[2]
        return f"accelerator {kind}" if value else f"no {kind}"
    return f"{value / 2**30:.1f} GiB memory" if name == "memory" else f"{value:g} {name}"


def _times(demand: Mapping[str, float], resources: Mapping[str, float]) -> int:
    return int(min((resources.get(name, 0.0) + 1e-6) // need for name, need in demand.items()))


def _has_labels(node: Node, labels: Mapping[str, str]) -> bool:
    return all(node.labels.get(key) == value for key, value in labels.items())
