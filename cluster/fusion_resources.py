"""What the fusion actor reserves of a cluster beside the lanes: checked first, because Ray would wait for ever."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cluster.config import FusionConfig
from fusion.errors import ConfigError
from training.lanes.capacity import LaneOptions, Node, workers_beside

_SMALL_CLUSTER_CPUS = 2
"""With this many cores or fewer, the lanes would lose more by a reserved core than the fuse would gain."""


def fusion_resources(
    fusion: FusionConfig, lanes: LaneOptions, nodes: Sequence[Node], free: Mapping[str, float], num_tasks: int
) -> dict[str, float]:
    """Ray resources of the fusion actor: those of `CPU` and `GPU` that are above 0.

    Args:
        fusion, lanes: what the configuration requests.
        nodes: the cluster's living nodes.
        free: what is free in the whole cluster now. `auto` leaves the last cores to a lane: where several runs share a
            cluster, their actors alone could hold all of it, and wait for ever.
        num_tasks: number of tasks, which limits the number of lanes.
    Raises: ConfigError when the requested actor and lanes can never run at the same time. A cluster that grows on
        demand is not checked.
    """
    gpus = {"GPU": fusion.num_gpus} if fusion.num_gpus else {}
    wanted = 1 if lanes.lanes == "auto" else min(lanes.lanes, max(num_tasks, 1))
    needs = wanted * lanes.workers
    if fusion.num_cpus == "auto":
        cpus = sum(node.resources.get("CPU", 0.0) for node in nodes)
        one = {**gpus, "CPU": 1.0}
        fits = workers_beside(lanes, nodes, one) >= needs and free.get("CPU", 0.0) >= 1 + lanes.workers * lanes.num_cpus
        chosen = one if cpus > _SMALL_CLUSTER_CPUS and fits else gpus
    else:
        chosen = {**gpus, **({"CPU": fusion.num_cpus} if fusion.num_cpus else {})}
    alone = workers_beside(lanes, nodes, {}) // lanes.workers * lanes.workers
    if not chosen or lanes.autoscaling or not alone:  # lanes check themselves whether even one fits
        return chosen
    if (room := workers_beside(lanes, nodes, chosen)) < needs:
        has = ", ".join(f"{sum(n.resources.get(name, 0.0) for n in nodes):g} {name}" for name in ("CPU", "GPU"))
        lane = " and ".join(f"{value:g} {name}" for name, value in lanes.demand().items() if name != "memory")
        raise ConfigError(
            f"train and fusion request more than the cluster has: {wanted} lanes x {lanes.workers} workers with {lane} "
            f"each, and {_amounts(chosen)} for the fusion actor on one node; the cluster has {has}, which leaves room "
            f"for {room} workers beside the actor. Lower train.lanes, train.workers or train.num_cpus, or set "
            "fusion.num_cpus to auto or 0 (the actor then fuses on one thread alongside the lanes)"
        )
    return chosen


def _amounts(resources: dict[str, float]) -> str:
    return " and ".join(f"{value:g} {name}" for name, value in resources.items())
