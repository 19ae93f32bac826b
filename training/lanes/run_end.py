"""What ends a lane when its run has ended. Imports little, because each lane's controller is a process of its own."""

from __future__ import annotations

import threading
import time
from typing import Any

import ray

# `ray.train.UserCallback` has no hook for the start. This one has: Ray calls it a developer API, and passes it on
from ray.train.v2._internal.execution.callback import ControllerCallback
from ray.train.v2._internal.execution.worker_group import WorkerGroup

WIND_DOWN_S = 15.0
"""How long a lane that has trained may take to stop by itself."""
_POLL_S = 0.5


class EndsWithTheRun(ControllerCallback):
    """Runs in the lane's controller: ends it, with whatever it holds or waits for, once the queue is closed.

    A controller that waits for resources, perhaps of a machine that is gone, would do so for ever. The driver's thread
    in `fit` would then use Ray after its shutdown, for which Ray ends the whole process with exit code 1.
    """

    def __init__(self, queue: Any, lane: str) -> None:
        self._queue = queue
        self._lane = lane

    def after_controller_start(self, train_run_context: Any) -> None:
        controller = ray.get_runtime_context().current_actor
        threading.Thread(target=self._end, args=(controller, _PlacementGroups()), daemon=True).start()

    def _end(self, controller: Any, groups: _PlacementGroups) -> None:
        while not ray.get(self._queue.is_closed.remote()):
            time.sleep(_POLL_S)
        if self._lane in ray.get(self._queue.lanes_seen.remote()):
            time.sleep(WIND_DOWN_S)
        groups.remove()
        ray.kill(controller)


class _PlacementGroups:
    """Those that this process's controller has asked for.

    Ray removes an actor's placement group when the whole job has ended, not with the actor, and what Ray Train starts
    to remove it sooner learns of it when its workers run. One that still waits would take free cores, for nobody.
    """

    def __init__(self) -> None:
        self._handles: list[Any] = []
        self._ended = False
        create = WorkerGroup._create_placement_group

        def noted(*arguments: Any) -> Any:
            handle = create(*arguments)
            self._handles.append(handle)
            if self._ended:
                handle.shutdown()
            return handle

        WorkerGroup._create_placement_group = noted  # type: ignore[assignment, method-assign]

    def remove(self) -> None:
        """Remove them all, and those that are still to come."""
        self._ended = True
        for handle in list(self._handles):
            handle.shutdown()
