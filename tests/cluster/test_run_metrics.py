"""What a run exports: a task that stands still is seen, one that waits or trains is not."""

from __future__ import annotations

from cluster.run_metrics import Stall
from training.lanes.task_queue import TaskStatus


def test_the_time_without_a_step_counts_for_tasks_in_training_alone() -> None:
    stall = Stall()
    waiting = TaskStatus("a")
    assert stall.seconds([waiting], now=0) == 0
    assert stall.seconds([waiting, TaskStatus("b", state="training", step=3)], now=10) == 0
    assert stall.seconds([waiting, TaskStatus("b", state="training", step=3)], now=25) == 15
    assert stall.seconds([waiting, TaskStatus("b", state="training", step=4)], now=30) == 0
    assert stall.seconds([TaskStatus("b", state="done", step=9)], now=99) == 0


def test_a_restarted_task_at_the_same_step_has_not_stood_still() -> None:
    stall = Stall()
    stall.seconds([TaskStatus("b", state="training", step=3, attempts=1)], now=0)
    assert stall.seconds([TaskStatus("b", state="training", step=3, attempts=2)], now=50) == 0


def test_the_longest_wait_counts() -> None:
    stall = Stall()
    for now, step in ((0, 1), (5, 2)):
        stall.seconds(
            [TaskStatus("a", state="training", step=1), TaskStatus("b", state="training", step=step)], now=now
        )
    assert stall.seconds([TaskStatus(n, state="training", step=s) for n, s in (("a", 1), ("b", 2))], now=9) == 9
