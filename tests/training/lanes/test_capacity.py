from __future__ import annotations

import pytest

from fusion.errors import ConfigError
from training.lanes.capacity import LaneOptions, Node, lanes_that_fit, workers_beside

SMALL = Node({"CPU": 4.0, "memory": 8.0 * 2**30}, {"zone": "a"})
GPUS = Node({"CPU": 32.0, "GPU": 4.0, "memory": 200.0 * 2**30, "accelerator_type:A100": 1.0}, {"zone": "b"})
FREE = {"CPU": 36.0, "GPU": 4.0, "memory": 208.0 * 2**30}


@pytest.mark.parametrize(
    ("options", "lanes"),
    [
        (LaneOptions(), 36),
        (LaneOptions(num_cpus=8), 4),
        (LaneOptions(num_gpus=1), 4),
        (LaneOptions(num_gpus=0.25), 16),
        (LaneOptions(num_gpus=1, workers=2), 2),
        (LaneOptions(lanes=3), 3),
        (LaneOptions(lanes=50, num_gpus=1), 4),
        (LaneOptions(labels={"zone": "a"}), 4),
        (LaneOptions(num_gpus=1, accelerator_type="A100"), 4),
        (LaneOptions(memory_gib=50), 4),
    ],
)
def test_as_many_lanes_as_fit(options: LaneOptions, lanes: int) -> None:
    assert lanes_that_fit(options, [SMALL, GPUS], FREE, num_tasks=100) == lanes


def test_never_more_lanes_than_tasks() -> None:
    assert lanes_that_fit(LaneOptions(), [GPUS], FREE, num_tasks=2) == 2


def test_auto_takes_what_is_free_and_one_lane_at_least() -> None:
    assert lanes_that_fit(LaneOptions(), [SMALL], {"CPU": 3.0}, num_tasks=9) == 3
    assert lanes_that_fit(LaneOptions(), [SMALL], {}, num_tasks=9) == 1
    assert lanes_that_fit(LaneOptions(lanes=4), [SMALL], {}, num_tasks=9) == 4


def test_auto_leaves_what_another_actor_of_the_run_reserved_noticed_or_not() -> None:
    reserved = {"CPU": 1.0}
    assert lanes_that_fit(LaneOptions(), [SMALL], {"CPU": 4.0}, num_tasks=9, reserved=reserved) == 3
    assert lanes_that_fit(LaneOptions(), [SMALL], {"CPU": 3.0}, num_tasks=9, reserved=reserved) == 3
    assert lanes_that_fit(LaneOptions(lanes=4), [SMALL], {}, num_tasks=9, reserved=reserved) == 3


@pytest.mark.parametrize(
    ("options", "reserved", "workers"),
    [
        (LaneOptions(num_cpus=4), {}, 9),
        (LaneOptions(num_cpus=4), {"CPU": 1.0}, 8),
        (LaneOptions(num_cpus=3), {"CPU": 1.0}, 11),  # the small node has one to spare
        (LaneOptions(num_cpus=4, labels={"zone": "b"}), {"CPU": 1.0}, 8),  # the other node has room
        (LaneOptions(num_gpus=1), {"CPU": 1.0, "GPU": 0.5}, 3),
        (LaneOptions(), {"CPU": 33.0}, 0),
    ],
)
def test_an_actor_beside_the_lanes_is_counted_on_the_node_where_it_costs_least(
    options: LaneOptions, reserved: dict[str, float], workers: int
) -> None:
    assert workers_beside(options, [SMALL, GPUS], reserved) == workers


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (LaneOptions(num_gpus=1), r"needs 1 GPU per worker, the largest node of this cluster has 0 GPU"),
        (LaneOptions(num_cpus=16), r"needs 16 CPU per worker, .* has 4 CPU"),
        (LaneOptions(memory_gib=9), r"needs 9.0 GiB memory per worker, .* has 8.0 GiB memory"),
        (LaneOptions(workers=5), r"one lane needs 5 workers with 1 CPU each, this cluster holds 4"),
        (LaneOptions(labels={"zone": "z"}), r"no node of the cluster has the labels"),
    ],
)
def test_a_demand_that_can_never_be_met_names_what_is_missing(options: LaneOptions, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        lanes_that_fit(options, [SMALL], FREE, num_tasks=3)


def test_an_accelerator_that_the_cluster_lacks_is_named() -> None:
    options = LaneOptions(num_gpus=1, accelerator_type="H100")
    with pytest.raises(ConfigError, match="needs accelerator H100 per worker"):
        lanes_that_fit(options, [GPUS], FREE, num_tasks=3)


def test_a_cluster_that_grows_is_not_asked() -> None:
    assert lanes_that_fit(LaneOptions(lanes=2, num_gpus=1, autoscaling=True), [SMALL], {}, num_tasks=3) == 2


@pytest.mark.parametrize(
    ("choices", "said"),
    [
        ({"lanes": 0}, "lanes is 0"),
        ({"workers": 2, "num_gpus": 0.5}, "NCCL refuses two workers"),
        ({"accelerator_type": "A100"}, "has no effect with num_gpus: 0"),
        ({"autoscaling": True}, "give a number of lanes"),
        ({"num_cpus": 0}, "num_cpus is 0, it must be above 0"),
    ],
)
def test_choices_that_contradict_each_other_are_refused(choices: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        LaneOptions(**choices)  # type: ignore[arg-type]
