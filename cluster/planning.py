"""Planning a run while Ray starts: both take seconds, and one mostly waits for processes and the other for files.

Ray is started by the main thread, where it sets its signal handlers; so it is the plan that is made in another one.
Many files are read by Ray tasks, and that reading waits until the session is there.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cluster.run import Run, jobs
from training.data.scan import Chunk
from training.data.task_data import Reading, load_test_data

if TYPE_CHECKING:  # it imports Ray, which must not be imported before the session is prepared
    import pyarrow as pa

    from training.lanes.plan import Plan


class PlanningStoppedError(Exception):
    """The run ended before it was planned."""


@dataclass(frozen=True)
class Planned:
    """What a run found out before it started.

    Attributes:
        plan: the tasks.
        unseen: what was understood of each test set that is only measured, by name.
    """

    plan: Plan
    unseen: dict[str, str]


class Planning:
    """The planning of one run. Use it as a context manager around the Ray session:

        with Planning(run) as planning, ray_session(…, beside=planning.start) as ray:
            planned = planning.result()

    Args:
        run: the run.
        unseen: read the test sets that are only measured, too, so that what is wrong with one ends the run before its
            training.
        verify: read all data again, also what earlier runs have read.
    """

    def __init__(self, run: Run, *, unseen: bool = True, verify: bool = False) -> None:
        self._run = run
        self._unseen = unseen
        self._verify = verify
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="planning")
        self._planned: Future[Planned] | None = None
        self._has_session = threading.Event()
        self._stopped = False

    def __enter__(self) -> Planning:
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped = True
        self._has_session.set()
        self._pool.shutdown()

    def start(self) -> None:
        """Begin, in a thread. Ray may be imported by now."""
        self._planned = self._pool.submit(self._plan)

    def result(self) -> Planned:
        """What was found. Waits for it; call it in the Ray session. Raises `DataError`, and the store's errors."""
        assert self._planned is not None, "planning was not started"
        self._has_session.set()
        return self._planned.result()

    def _plan(self) -> Planned:
        from training.lanes.plan import plan_tasks

        config, unseen = self._run.config, {}
        reading = Reading(config.address, refresh=self._verify, scan=self._scan)
        for one in config.unseen if self._unseen else ():
            unseen[one.name] = load_test_data(one.name, one.data, reading).summary()
        plan = plan_tasks(config.address, self._run.base, jobs(config), verify=self._verify, scan=self._scan)
        return Planned(plan, unseen)

    def _scan(self, chunks: Sequence[Chunk], verify: bool) -> Iterator[tuple[int, pa.Table]]:
        from training.lanes.cluster_scan import scan_on_cluster

        for found in scan_on_cluster(chunks, verify, has_session=self._session_is_there):
            yield found
            self._check_goes_on()

    def _session_is_there(self) -> bool:
        self._has_session.wait()
        self._check_goes_on()
        return True

    def _check_goes_on(self) -> None:
        if self._stopped:
            raise PlanningStoppedError
