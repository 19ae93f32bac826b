"""What ends a lane when its run has ended. Imports little, because each lane's controller is a process of its own."""

from __future__ import annotations

import threading
import time
from typing import Any

import ray

# `ray.train.UserCallback` has no hook for the start. This one has: Ray calls it a developer API, and passes it on
from ray.train.v2._internal.execution.callback import ControllerCallback

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
        threading.Thread(target=self._end, args=(controller,), daemon=True).start()

    def _end(self, controller: Any) -> None:
        while not ray.get(self._queue.is_closed.remote()):
            time.sleep(_POLL_S)
        if self._lane in ray.get(self._queue.lanes_seen.remote()):
            time.sleep(WIND_DOWN_S)
        ray.kill(controller)
