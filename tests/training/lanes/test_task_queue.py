from __future__ import annotations

import pytest

from fusion.store import Store
from fusion.store.address import StoreAddress
from fusion.store.blobs import BlobRef
from fusion.versions.experts import ExpertRecord, count_attempt, put_expert
from training.lanes.task_queue import PlannedTask, TaskJob, TaskQueue
from training.recipe import Recipe

NAMES = ("first", "second", "third")


def new_queue(store: Store, max_attempts: int = 2) -> TaskQueue:
    tasks = [PlannedTask(TaskJob(name, "/nowhere", Recipe()), f"id-{name}") for name in NAMES]
    return TaskQueue(StoreAddress(store.url), tasks, max_attempts)


def finish(store: Store, name: str) -> None:
    record = ExpertRecord(f"id-{name}", name, ("a",), ("{}",), "base", BlobRef("x", "0" * 64, 1))
    put_expert(store, record)


def states(queue: TaskQueue) -> list[str]:
    return [status.state for status in queue.statuses()]


@pytest.fixture
def queue(local_store: Store) -> TaskQueue:
    return new_queue(local_store)


def test_tasks_are_handed_out_in_order_and_each_once(queue: TaskQueue) -> None:
    assert [queue.take(lane, "host:1") for lane in ("a", "b", "c", "d")] == [0, 1, 2, -1]
    assert states(queue) == ["training"] * 3
    assert queue.statuses()[1].worker == "host:1"


def test_a_restarted_lane_gets_its_own_task_back(queue: TaskQueue) -> None:
    queue.take("a", "host:1")
    assert queue.take("b", "host:2") == 1
    assert queue.take("b", "host:3") == 1
    assert queue.statuses()[1].attempts == 2


def test_a_task_whose_record_exists_is_not_handed_out(queue: TaskQueue, local_store: Store) -> None:
    finish(local_store, "first")
    assert queue.take("a", "host:1") == 1
    assert states(queue) == ["done", "training", "waiting"]
    assert queue.statuses()[0].step == queue.statuses()[0].steps


def test_a_task_that_was_cut_short_too_often_fails_with_its_last_error(queue: TaskQueue, local_store: Store) -> None:
    for _ in range(2):
        assert queue.take("a", "host:1") == 0
        count_attempt(local_store, "id-first")
        assert not queue.crashed("a", "worker 0: out of memory")
    assert queue.take("a", "host:1") == 1
    failed = queue.statuses()[0]
    assert failed.state == "failed"
    assert failed.reason == "its training was cut short 2 times, the last time: worker 0: out of memory"


def test_a_worker_that_dies_before_counting_its_attempt_is_still_counted(queue: TaskQueue) -> None:
    assert [queue.take("a", "host:1") for _ in range(3)] == [0, 0, 1]


def test_attempts_of_earlier_runs_do_not_count(local_store: Store) -> None:
    for _ in range(5):
        count_attempt(local_store, "id-first")
    task = PlannedTask(TaskJob("first", "/nowhere"), "id-first", attempts_before=5)
    assert TaskQueue(StoreAddress(local_store.url), [task], 1).take("a", "host:1") == 0


def test_a_lane_that_dies_without_progress_is_given_up_and_its_task_goes_to_another(queue: TaskQueue) -> None:
    queue.take("a", "host:1")
    assert [queue.crashed("a", "no module named condu") for _ in range(3)] == [False, False, True]
    assert queue.take("b", "host:2") == 0


def test_a_lane_whose_machine_cannot_train_is_given_up_at_once_and_its_task_goes_to_another(queue: TaskQueue) -> None:
    assert queue.take("a", "full:1") == 0
    queue.unfit("a")
    assert queue.crashed("a", "can't write /tmp/x: the disk is full")
    assert queue.take("b", "roomy:1") == 0
    assert queue.statuses()[0].worker == "roomy:1"


def test_a_finished_task_resets_the_count_of_crashes(queue: TaskQueue) -> None:
    queue.take("a", "host:1")
    assert [queue.crashed("a", "x") for _ in range(2)] == [False, False]
    queue.done("a", 0, 20)
    assert not queue.crashed("a", "x")


def test_the_first_reason_is_kept_and_done_is_never_undone(queue: TaskQueue) -> None:
    queue.take("a", "host:1")
    queue.failed("a", 0, "one")
    queue.failed("a", 0, "two")
    assert queue.statuses()[0].reason == "one"
    queue.take("a", "host:1")
    queue.done("a", 1, 20)
    queue.failed("a", 1, "late")
    queue.progress("a", "host:1", 1, 3, 0.5)
    assert states(queue) == ["failed", "done", "waiting"]


def test_a_queue_that_was_killed_learns_from_the_lanes_where_they_are(local_store: Store) -> None:
    finish(local_store, "first")
    queue = new_queue(local_store)
    assert queue.progress("b", "host:2", 1, 7, 0.3)
    assert queue.take("a", "host:1") == 2
    assert states(queue) == ["done", "training", "training"]
    assert queue.take("b", "host:2") == 1


def test_a_closed_queue_stops_everything(queue: TaskQueue) -> None:
    queue.take("a", "host:1")
    queue.close()
    assert not queue.progress("a", "host:1", 0, 1, 0.5)
    assert queue.take("b", "host:2") == -1
    assert queue.crashed("a", "closed")
