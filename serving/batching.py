"""Continuous batching: one thread runs the models, and whenever it is free it takes what has come meanwhile.

Nothing waits for a batch to fill: a lone image is computed at once, and under load the images that arrive during one
forward make up the next. Work stands in lanes, one per model and one per piece of other work. Lanes take turns, so that
a busy task cannot starve the others, and within a lane a request of many images goes to the back after each batch.
Lanes of one pool may share a forward, where the pool finds that better than a lane's own.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Generator, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch

from serving.stages import waited

Result = TypeVar("Result")
Forward = Callable[[Sequence[Any]], torch.Tensor]
"""Images, in whatever form the lane has them, to features [B, D]."""
Slices = Generator[None, None, Result]
"""Work that yields where others may have a turn, and returns its result."""


@dataclass(frozen=True)
class Pool:
    """Lanes of images that one forward can take together.

    Attributes:
        forward: of images of any of them.
        joins: whether it is better than the first lane's own forward of its own images. Given that lane, and how many
            images of it and of the others there would be. Called by the compute thread.
    """

    forward: Forward
    joins: Callable[[Hashable, Sequence[int]], bool]


class _Answer(Generic[Result]):
    """What a caller waits for, settled from the compute thread in the caller's event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.future: asyncio.Future[Result] = self._loop.create_future()

    def settle(self, result: Any, error: BaseException | None = None) -> None:
        self._loop.call_soon_threadsafe(self._settle, result, error)

    def _settle(self, result: Any, error: BaseException | None) -> None:
        if self.future.done():  # cancelled: nobody waits any longer
            return
        if error is None:
            self.future.set_result(result)
        else:
            self.future.set_exception(error)


@dataclass
class _Images:
    """A request's images for one model. `rows` are the features of the first `taken` of them, once computed.

    `failed`: a forward of it did, so its other images are nobody's any longer. Only the compute thread looks at it; the
    future is settled later, in the event loop.
    """

    answer: _Answer[torch.Tensor]
    forward: Forward
    items: Sequence[Any]
    pool: Pool | None = None
    taken: int = 0
    failed: bool = False
    rows: list[torch.Tensor] = field(default_factory=list)
    arrived: float = field(default_factory=time.perf_counter)
    begun: float = 0.0

    @property
    def is_waiting(self) -> bool:
        return not self.failed and not self.answer.future.cancelled()


_Batch = list[tuple[_Images, int, int]]
"""Requests, and which of their images: [first, last)."""


@dataclass
class _Steps:
    answer: _Answer[Any]
    slices: Slices[Any]


@dataclass
class Counts:
    """What the thread has done since it started."""

    batches: int = 0
    images: int = 0
    largest_batch: int = 0


class Batcher:
    """The compute thread of a replica.

    Args:
        max_batch_size: most images in one forward.
    """

    def __init__(self, max_batch_size: int) -> None:
        self.counts = Counts()
        self._max_batch_size = max_batch_size
        self._lanes: OrderedDict[Hashable, deque[_Images] | _Steps] = OrderedDict()
        self._arrived = threading.Condition()
        self._closed = False
        threading.Thread(target=self._work, name="compute", daemon=True).start()

    async def images(
        self, lane: Hashable, forward: Forward, items: Sequence[Any], *, pool: Pool | None = None
    ) -> torch.Tensor:
        """Features of a request's images, [B, D] for B > 0. Images of other requests in the lane share its forwards.

        Args:
            pool: of the lane, always the same.
        Raises what the forward raises.
        """
        wanted = _Images(_Answer(), forward, items, pool)
        with self._arrived:
            queue = self._lanes.setdefault(lane, deque())
            assert isinstance(queue, deque), "a lane of images is named by its model"
            queue.append(wanted)
            self._arrived.notify()
        features = await wanted.answer.future
        waited(wanted.begun - wanted.arrived)
        return features

    async def steps(self, slices: Slices[Result]) -> Result:
        """The result of work that takes turns with the lanes of images. Raises what it raises."""
        work = _Steps(_Answer(), slices)
        with self._arrived:
            self._lanes[id(work)] = work
            self._arrived.notify()
        result: Result = await work.answer.future
        return result

    def close(self) -> None:
        """End the thread after the work that it is at."""
        with self._arrived:
            self._closed = True
            self._arrived.notify()

    def _work(self) -> None:
        while True:
            with self._arrived:
                while not self._lanes and not self._closed:
                    self._arrived.wait()
                if self._closed:
                    return
                lane, waiting = self._lanes.popitem(last=False)
                forward, batch = self._next(lane, waiting) if isinstance(waiting, deque) else (None, [])
            if isinstance(waiting, _Steps):
                self._advance(lane, waiting)
            elif forward and batch:
                self._compute(forward, batch)

    def _next(self, lane: Hashable, queue: deque[_Images]) -> tuple[Forward | None, _Batch]:
        """What a lane that has its turn computes: its own images, or with them those of others in its pool."""
        own = _waiting(queue)
        if not own:
            return None, []
        forward, lanes, counts = queue[0].forward, [(lane, queue)], [min(own, self._max_batch_size)]
        room, pool = self._max_batch_size - counts[0], queue[0].pool
        for other, requests in self._lanes.items() if pool else ():
            if not room:
                break
            if isinstance(requests, deque) and (num := _waiting(requests)) and requests[0].pool is pool:
                lanes.append((other, requests))
                counts.append(min(num, room))
                room -= counts[-1]
        if pool and len(lanes) > 1:
            if pool.joins(lane, counts):
                forward = pool.forward
            else:
                del lanes[1:]
        batch: _Batch = []
        for (name, requests), count in zip(lanes, counts, strict=False):
            self._lanes.pop(name, None)
            batch += self._taken(name, requests, count)
        return forward, batch

    def _taken(self, lane: Hashable, queue: deque[_Images], room: int) -> _Batch:
        """The next images of a lane's requests. What is left goes behind the other lanes."""
        batch, unfinished = [], []
        while queue and room:
            request = queue.popleft()
            if not request.is_waiting:
                continue
            first, request.taken = request.taken, min(len(request.items), request.taken + room)
            room -= request.taken - first
            batch.append((request, first, request.taken))
            if request.taken < len(request.items):
                unfinished.append(request)
        queue.extend(unfinished)
        if queue:
            self._lanes[lane] = queue
        return batch

    def _compute(self, forward: Forward, batch: _Batch) -> None:
        for request, first, _ in batch:
            request.begun = request.begun if first else time.perf_counter()
        items = [item for request, first, last in batch for item in request.items[first:last]]
        self.counts.batches += 1
        self.counts.images += len(items)
        self.counts.largest_batch = max(self.counts.largest_batch, len(items))
        try:
            features = forward(items)
        except Exception as error:
            for request, _, _ in batch:
                request.failed = True
                request.answer.settle(None, error)
            return
        start = 0
        for request, first, last in batch:
            request.rows.append(features[start : start + last - first])
            start += last - first
            if last == len(request.items):
                request.answer.settle(request.rows[0] if len(request.rows) == 1 else torch.cat(request.rows))

    def _advance(self, lane: Hashable, work: _Steps) -> None:
        if work.answer.future.cancelled():
            work.slices.close()
            return
        try:
            next(work.slices)
        except StopIteration as ended:
            work.answer.settle(ended.value)
        except Exception as error:
            work.answer.settle(None, error)
        else:
            with self._arrived:
                self._lanes[lane] = work


def _waiting(queue: deque[_Images]) -> int:
    """How many images of a lane nobody has computed yet. Requests that nobody waits for at its head are dropped."""
    while queue and not queue[0].is_waiting:
        queue.popleft()
    return sum(len(request.items) - request.taken for request in queue if request.is_waiting)
