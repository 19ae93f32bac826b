"""Chooses what is logged, and makes rows of it.

`condu drift` compares the base's features, so images of a named task, which it need not see, are shown to it after the
answer.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from fusion.store import Store
from serving.answered import Answered
from serving.images import Upload
from serving.metrics import Metrics
from serving.models import Models
from serving.options import LogOptions
from serving.request_log.rows import Row
from serving.request_log.writer import LogWriter

_MOST_LATE = 64
"""Images that may wait for the base to see them for the log alone."""
_LAST_WRITE_S = 5.0


class Recorder:
    """Keeps a sample of what is answered. For one event loop; nothing here makes a request wait or fail.

    Args:
        models: whose base sees what it has not seen yet.
    """

    def __init__(self, options: LogOptions, writer: LogWriter, models: Models) -> None:
        self._options = options
        self._writer = writer
        self._models = models
        self._random = random.Random()
        self._late: set[asyncio.Task[None]] = set()
        self._num_late = 0

    def note(self, request: str, uploads: Sequence[Upload], answered: Answered) -> None:
        """A request was answered. Of views of one object the first stands for all."""
        chosen = [i for i in range(len(answered.predictions)) if self._random.random() < self._options.sample]
        if not chosen:
            return
        if answered.features is not None:
            with self._harmless(len(chosen)):
                self._add(request, uploads, answered, chosen, answered.features[chosen])
        elif self._num_late + len(chosen) > _MOST_LATE:
            self._writer.lost(len(chosen), "no_room", "the models are busy with requests")
        else:
            self._num_late += len(chosen)
            late = asyncio.get_running_loop().create_task(self._add_late(request, uploads, answered, chosen))
            self._late.add(late)
            late.add_done_callback(self._late.discard)

    async def flush(self) -> None:
        """Write what was noted."""
        await self._wait_for_late()
        await asyncio.to_thread(self._writer.flush, _LAST_WRITE_S)

    async def close(self) -> None:
        """Write what was noted, and take no more."""
        await self._wait_for_late()
        await asyncio.to_thread(self._writer.close, _LAST_WRITE_S)

    async def _wait_for_late(self) -> None:
        if self._late:
            await asyncio.wait(set(self._late), timeout=_LAST_WRITE_S)

    async def _add_late(
        self, request: str, uploads: Sequence[Upload], answered: Answered, chosen: Sequence[int]
    ) -> None:
        with self._harmless(len(chosen)):
            features = await self._models.features(answered.crops[list(chosen)])
            self._add(request, uploads, answered, chosen, features)
        self._num_late -= len(chosen)

    @contextmanager
    def _harmless(self, num_rows: int) -> Iterator[None]:
        """Whatever goes wrong inside costs so many rows, and nothing else."""
        try:
            yield
        except Exception as error:
            self._writer.lost(num_rows, "failed", error)

    def _add(
        self,
        request: str,
        uploads: Sequence[Upload],
        answered: Answered,
        chosen: Sequence[int],
        features: torch.Tensor,
    ) -> None:
        now, halves = time.time(), features.half().numpy()
        plan, query = answered.plan, answered.plan.query
        rows = []
        for number, own in zip(chosen, halves, strict=True):
            prediction = answered.predictions[number]
            task, label, probability = prediction.top[0]
            rows.append(
                Row(
                    time=now,
                    request=request,
                    version=answered.view.version,
                    label_space=query.label_space,
                    named=query.task,
                    matched=tuple(prediction.matched),
                    routed=plan.routed[number],
                    experts=prediction.experts,
                    task=task,
                    label=label,
                    probability=probability,
                    familiarity=prediction.familiarity,
                    unknown=prediction.unknown,
                    views=plan.num_views if query.views is not None else 1,
                    features=own,
                    image=uploads[number].encoded if self._options.images else None,
                )
            )
        self._writer.add(rows)


def open_recorder(options: LogOptions, store: Store, models: Models, metrics: Metrics) -> Recorder | None:
    """What logs into a store; None where nothing is to be logged."""
    if options.sample == 0:
        return None
    return Recorder(options, LogWriter(store, options, metrics), models)
