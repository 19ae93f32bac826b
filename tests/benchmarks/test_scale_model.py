"""The model of a large run, where the answer is known without it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.scale_model import Costs, simulate

COSTS = Costs(
    driver_s=10.0,
    machine_s=0.0,
    lane_s=5.0,
    task_s=20.0,
    actor_s=0.0,
    fuse_s=1.0,
    version_s=0.5,
    version_task_s=0.0,
    end_s=3.0,
)


def test_one_lane_trains_one_task_after_another() -> None:
    out = simulate(COSTS, num_tasks=4, num_lanes=1)
    assert out.trained_s == pytest.approx(10 + 5 + 4 * 20)
    assert out.seconds == pytest.approx(out.trained_s + 1 + 0.5 + 3), "the last one is fused when the others are"
    assert out.num_versions == 4


def test_lanes_with_a_core_each_train_side_by_side_and_those_that_share_one_do_not() -> None:
    assert simulate(COSTS, 4, 2).trained_s == pytest.approx(10 + 5 + 2 * 20)
    assert simulate(COSTS, 4, 2, cores=1).trained_s == pytest.approx(10 + 2 * (5 + 2 * 20))
    assert simulate(COSTS, 3, 3, cores=2).trained_s == pytest.approx(10 + 1.5 * (5 + 20))


def test_machines_that_share_cores_wait_for_each_other_before_lanes_start() -> None:
    costs = replace(COSTS, machine_s=4.0)
    assert simulate(costs, 2, 3).trained_s == pytest.approx(10 + 4 + 5 + 20)
    assert simulate(costs, 2, 3, cores=2).trained_s == pytest.approx(10 + 1.5 * 4 + 5 + 20)


def test_what_works_beside_a_lane_slows_it_where_cores_are_shared() -> None:
    costs = replace(COSTS, beside=0.5)
    assert simulate(costs, 4, 2).trained_s == simulate(COSTS, 4, 2).trained_s
    assert simulate(costs, 4, 1, cores=2).trained_s == simulate(COSTS, 4, 1).trained_s, "a core and a half are there"
    assert simulate(costs, 4, 2, cores=2).trained_s == pytest.approx(10 + 1.5 * (5 + 2 * 20))


def test_the_first_expert_waits_for_the_actor_to_start() -> None:
    costs = replace(COSTS, actor_s=7.0)
    assert simulate(costs, 1, 1).fused_s == pytest.approx(35 + 7 + 1.5)
    assert simulate(costs, 4, 1).fused_s == simulate(COSTS, 4, 1).fused_s, "it starts while the second task is trained"
    assert simulate(costs, 2, 1, cores=1).trained_s == pytest.approx(10 + 5 + 2 * 20 + 7), "on the same core"


def test_a_lane_without_a_task_costs_nothing() -> None:
    assert simulate(COSTS, 2, 50, cores=2) == simulate(COSTS, 2, 2, cores=2)


def test_tasks_that_are_ready_together_are_fused_one_by_one_or_together() -> None:
    each, batch = simulate(COSTS, 8, 8), simulate(COSTS, 8, 8, batch=16)
    assert each.fused_s == pytest.approx(35 + 8 * 1.5)
    assert batch.fused_s == pytest.approx(35 + 8 * 1.0 + 0.5)
    assert (each.num_versions, batch.num_versions) == (8, 1)


def test_a_version_costs_more_the_more_tasks_it_names() -> None:
    costs = replace(COSTS, version_task_s=0.1)
    assert simulate(costs, 8, 8).fused_s == pytest.approx(35 + 8 * 1.5 + 0.1 * 36)
    assert simulate(costs, 8, 8, batch=16).fused_s == pytest.approx(35 + 8.5 + 0.1 * 8)


def test_a_test_set_is_measured_under_every_version() -> None:
    costs = replace(COSTS, measure_s=2.0)
    assert simulate(costs, 8, 4).seconds - simulate(COSTS, 8, 4).seconds == pytest.approx(8 * 8 * 2.0 / 4)
