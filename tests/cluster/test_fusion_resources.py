"""What the fusion actor reserves: a core if there is one to spare, and never what the lanes need to start."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.config import FusionConfig
from cluster.fusion_resources import fusion_resources
from fusion.errors import ConfigError
from training.lanes.capacity import LaneOptions, Node

GPU_NODE = Node({"CPU": 8.0, "GPU": 2.0}, {})


def all_of(nodes: list[Node]) -> dict[str, float]:
    return {"CPU": sum(node.resources["CPU"] for node in nodes)}


def cpus(*counts: float) -> list[Node]:
    return [Node({"CPU": float(count)}, {}) for count in counts]


@pytest.mark.parametrize(
    ("nodes", "lanes", "cores"),
    [
        (cpus(1), LaneOptions(), 0),
        (cpus(2), LaneOptions(), 0),
        (cpus(3), LaneOptions(), 1),
        (cpus(2, 2), LaneOptions(), 1),
        (cpus(4), LaneOptions(lanes=3), 1),
        (cpus(4), LaneOptions(lanes=4), 0),
        (cpus(4), LaneOptions(num_cpus=4), 0),
        (cpus(4, 1), LaneOptions(num_cpus=4), 1),
        (cpus(4), LaneOptions(lanes=9), 1),  # two tasks start only two of them
    ],
)
def test_auto_takes_a_core_that_the_lanes_can_spare(nodes: list[Node], lanes: LaneOptions, cores: int) -> None:
    num_tasks = 2 if lanes.lanes == 9 else 20
    assert fusion_resources(FusionConfig(), lanes, nodes, all_of(nodes), num_tasks).get("CPU", 0) == cores


@pytest.mark.parametrize(("free", "cores"), [(0, 0), (2, 0), (3, 1)])
def test_auto_leaves_the_last_cores_of_a_busy_cluster_to_a_lane(free: float, cores: int) -> None:
    found = fusion_resources(FusionConfig(), LaneOptions(num_cpus=2), cpus(8), {"CPU": free}, 9)
    assert found.get("CPU", 0) == cores


def test_what_is_set_passes_through() -> None:
    assert fusion_resources(FusionConfig(num_cpus=0), LaneOptions(), cpus(8), {}, 9) == {}
    assert fusion_resources(FusionConfig(num_cpus=3), LaneOptions(), cpus(8), {}, 9) == {"CPU": 3}
    gpu = FusionConfig(device="cuda", num_gpus=0.5)
    assert fusion_resources(gpu, LaneOptions(num_gpus=1), [GPU_NODE], all_of([GPU_NODE]), 9) == {"GPU": 0.5, "CPU": 1.0}


@pytest.mark.parametrize(
    ("fusion", "lanes", "nodes", "said"),
    [
        (
            {"num_cpus": 1},
            LaneOptions(lanes=4),
            cpus(4),
            r"4 lanes x 1 workers with 1 CPU each, and 1 CPU .* 3 workers",
        ),
        ({"num_cpus": 1}, LaneOptions(workers=4), cpus(4), r"1 lanes x 4 workers .* the cluster has 4 CPU"),
        ({"num_cpus": 2}, LaneOptions(workers=2, num_cpus=2), cpus(3, 3), r"room for 1 workers"),
        ({"num_cpus": 9}, LaneOptions(), cpus(4, 8), r"9 CPU for the fusion actor on one node"),
        ({"device": "cuda", "num_gpus": 1}, LaneOptions(), cpus(4), r"1 GPU for the fusion actor .* 0 GPU"),
        ({"device": "cuda", "num_gpus": 1}, LaneOptions(lanes=2, num_gpus=1), [GPU_NODE], r"room for 1 workers"),
    ],
)
def test_lanes_and_an_actor_that_can_never_run_together_are_refused(
    fusion: dict[str, Any], lanes: LaneOptions, nodes: list[Node], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        fusion_resources(FusionConfig(**fusion), lanes, nodes, all_of(nodes), 9)


def test_a_cluster_that_grows_is_not_checked() -> None:
    lanes = LaneOptions(lanes=9, autoscaling=True)
    assert fusion_resources(FusionConfig(num_cpus=2), lanes, cpus(2), {}, 9) == {"CPU": 2}


@pytest.mark.parametrize("values", [{"device": "cuda"}, {"num_gpus": 1}])
def test_a_gpu_needs_both_a_device_and_a_share(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="needs both device: cuda and num_gpus"):
        FusionConfig(**values)
