"""Continuous batching: one thread runs the models, and whenever it is free it takes what has come meanwhile.

Nothing waits for a batch to fill: a lone image is computed at once, and under load the images that arrive during one
forward make up the next. Work stands in lanes, one per model and one per piece of other work. Lanes take turns, so that
a busy task cannot starve the others, and within a lane a request of many images goes to the back after each batch.
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
    taken: int = 0
    failed: bool = False
    rows: list[torch.Tensor] = field(default_factory=list)
    arrived: float = field(default_factory=time.perf_counter)
    begun: float = 0.0


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

    async def images(self, lane: Hashable, forward: Forward, items: Sequence[Any]) -> torch.Tensor:
        """Features of a request's images, [B, D] for B > 0. Images of other requests in the lane share its forwards.

        Raises what the forward raises.
        """
        wanted = _Images(_Answer(), forward, items)
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
                batch = self._batch(lane, waiting) if isinstance(waiting, deque) else []
            if isinstance(waiting, _Steps):
                self._advance(lane, waiting)
            elif batch:
                self._compute(batch)

    def _batch(self, lane: Hashable, queue: deque[_Images]) -> list[tuple[_Images, int, int]]:
        """The next images [first, last) of a lane's requests. What is left goes behind the other lanes."""
        batch, room, unfinished = [], self._max_batch_size, []
        while queue and room:
            request = queue.popleft()
            if request.failed or request.answer.future.cancelled():
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

    def _compute(self, batch: Sequence[tuple[_Images, int, int]]) -> None:
        for request, first, _ in batch:
            request.begun = request.begun if first else time.perf_counter()
        items = [item for request, first, last in batch for item in request.items[first:last]]
        self.counts.batches += 1
        self.counts.images += len(items)
        self.counts.largest_batch = max(self.counts.largest_batch, len(items))
        try:
            features = batch[0][0].forward(items)
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
