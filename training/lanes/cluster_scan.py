"""Reading the files of a data set on all nodes of a cluster, before anything is trained on them.

Each chunk of files is a Ray task. Data may lie on this node alone, and the cluster may be busy with other things, so a
chunk that another node can't read, or that nobody has begun for a while, is read here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import RayError

from fusion.errors import DataError
from training.data.contents import read_contents
from training.data.scan import Chunk, scan_here

if TYPE_CHECKING:
    import pyarrow as pa

_FEW_FILES = 2000
_FEW_BYTES = 256 << 20
"""Below both, a process of its own for each chunk costs more than it saves."""
_TASK_CPUS = 0.25
"""A task waits for disk and network half of its time, and finds room beside lanes and replicas."""
_PATIENCE_S = 10.0


def scan_on_cluster(
    chunks: Sequence[Chunk], verify: bool, *, has_session: Callable[[], bool] = ray.is_initialized
) -> Iterator[tuple[int, pa.Table]]:
    """See `training.data.scan.Scan`. Few files are read here, and so are many where there is no Ray session.

    Args:
        has_session: asked if there are many files; it may wait for a session that is starting.
    """
    files = [one for chunk in chunks for one in chunk]
    few = len(files) < _FEW_FILES and sum(one.size for one in files) < _FEW_BYTES
    if few or not has_session():
        yield from scan_here(chunks, verify)
        return
    read: Any = ray.remote(num_cpus=_TASK_CPUS, scheduling_strategy="SPREAD")(_read)
    at_once = max(2, int(ray.cluster_resources().get("CPU", 1)))
    waiting = deque(range(len(chunks)))
    running: dict[Any, int] = {}
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                number = waiting.popleft()
                running[read.remote(chunks[number], verify)] = number
            ready, _ = ray.wait(list(running), num_returns=1, timeout=_PATIENCE_S)
            if not ready:
                reference = next(reversed(running))  # the last to be sent: the least likely to have begun
                ray.cancel(reference)
                number = running.pop(reference)
                yield number, read_contents(chunks[number], verify=verify)
            for reference in ready:
                number = running.pop(reference)
                yield number, _result(reference, chunks[number], verify)
    finally:
        for reference in running:
            ray.cancel(reference)


def _read(chunk: Chunk, verify: bool) -> pa.Table | DataError:
    try:
        return read_contents(chunk, verify=verify)
    except DataError as error:
        return error


def _result(reference: Any, chunk: Chunk, verify: bool) -> pa.Table:
    try:
        found = ray.get(reference)
    except RayError as error:
        raise DataError(
            f"the process that read {chunk[0].origin} and the {len(chunk) - 1} files after it died more than once "
            f"({type(error).__name__}): look for a damaged image among them, or for too little memory on the nodes"
        ) from error
    return read_contents(chunk, verify=verify) if isinstance(found, DataError) else found
