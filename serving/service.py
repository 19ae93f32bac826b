"""One request from images to answer: chooses the version, routes, asks the models, combines their logits.

Knows the rules of `fusion.answers.label_spaces` and the replica's models; neither HTTP nor Ray.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import numpy as np

from fusion.answers.label_spaces import Query, needs_base
from fusion.answers.rules import answer, plan
from fusion.answers.rules.views import pooled
from fusion.answers.view import View
from fusion.errors import BlobNotFoundError, ImageError, UnknownVersionError, VersionGoneError
from serving.answered import Answered
from serving.errors import NotReadyError, OverloadedError, RequestTimeoutError
from serving.images import Cropper, Upload
from serving.metrics import Metrics
from serving.models import Models
from serving.options import ServiceOptions
from serving.request_log.recorder import Recorder
from serving.schemas import ImagePrediction, PredictFields, PredictResponse
from serving.stages import Stopwatch
from serving.watch import VersionWatcher

logger = logging.getLogger(__name__)
Result = TypeVar("Result")

_DECODERS = 2
_FEW_IMAGES = 8
_GONE = (BlobNotFoundError, UnknownVersionError, VersionGoneError)


class Service:
    """Answers predictions. At most `max_queued_requests` are in flight, each for at most `request_timeout_s`."""

    def __init__(
        self,
        options: ServiceOptions,
        watcher: VersionWatcher,
        models: Models,
        metrics: Metrics,
        recorder: Recorder | None = None,
    ) -> None:
        self.options = options
        self.watcher = watcher
        self.models_state = "starting"
        self.models = models
        self._metrics = metrics
        self._recorder = recorder
        self._in_flight = 0
        self._draining = False
        self._cropper: Cropper | None = None
        # few threads: decoding an image of max_pixels takes several times as many bytes
        self._decoders = ThreadPoolExecutor(_DECODERS, thread_name_prefix="decode")
        self._rules = ThreadPoolExecutor(1, thread_name_prefix="rules")

    @property
    def ready(self) -> bool:
        return self.watcher.current is not None and self.models_state == "ready" and not self._draining

    async def drain(self) -> None:
        """Refuse new predictions, and return when those in flight are done, which their timeout limits."""
        self._draining = True
        while self._in_flight:
            await asyncio.sleep(0.05)

    def query(self, fields: PredictFields) -> Query:
        """The query that a request's fields mean, within the limits of this service. Raises `LabelSpaceError`."""
        limits = self.options
        query = fields.query(default_top_k=limits.top_k, max_top_k=limits.max_top_k, max_texts=limits.max_texts)
        abstain = limits.abstain if query.label_space == "seen" and query.abstain is None else query.abstain
        return replace(query, rule=limits.rule, abstain=abstain)

    async def predict(
        self, uploads: Sequence[Upload], query: Query, version: int | None = None, request: str = ""
    ) -> PredictResponse:
        """Answers for the images, in their order, all from one version (None: the one being served).

        Args:
            request: its id, for the log.
        Raises the errors of a bad request, `OverloadedError`, `RequestTimeoutError`, and the store's errors.
        """
        started, watch = time.perf_counter(), Stopwatch()
        async with self.in_time():
            answered = await self._predict(uploads, query, version, watch)
        answers = answered.predictions
        familiarity = [one.familiarity for one in answers if one.familiarity is not None]
        self._metrics.answered(query.label_space, watch.seconds, familiarity)
        if self._recorder is not None:
            self._recorder.note(request, uploads, answered)
        if query.views is None:
            predictions = [ImagePrediction.of(u.name, a) for u, a in zip(uploads, answers, strict=True)]
        else:
            predictions = [ImagePrediction.of(uploads[0].name, answers[0], views=len(uploads))]
        return PredictResponse(
            version=answered.view.version,
            label_space=query.label_space,
            matched={task: dict(found) for task, found in answers[0].matched.items()} if answers else {},
            warnings=list(answers[0].warnings) if answers else [],
            predictions=predictions,
            expert_forwards=sum(one.forwards for one in answers),
            seconds=round(time.perf_counter() - started, 4),
        )

    async def _predict(
        self, uploads: Sequence[Upload], query: Query, version: int | None, watch: Stopwatch
    ) -> Answered:
        view = await self.watcher.view(version)
        query.check(view)
        with watch.stage("decode"):
            crops = await self.crops(uploads, view, view.background(query.task))
        try:
            return await self._answer(view, query, crops, watch)
        except _GONE as error:
            if version is not None and version != getattr(self.watcher.current, "version", None):
                raise VersionGoneError(f"version {version} was removed during the request ({error})") from error
            # gc removed a blob of the version being served: a newer one must exist, and the request starts over on it
            await self.watcher.poll(listing=True)
            newer = await self.watcher.view(None)
            if version is not None or newer.version == view.version:
                raise
            query.check(newer)
            return await self._answer(newer, query, crops, watch)

    async def _answer(self, view: View, query: Query, crops: np.ndarray, watch: Stopwatch) -> Answered:
        features = None
        if needs_base(query, view):
            with watch.stage("base"):
                features = await self.models.features(crops)
        shown = pooled(features) if query.pools and features is not None else features
        with watch.stage("route"):
            steps = await self._think(query, len(crops), plan, query, view, shown, num_images=len(crops))
        base_jobs = [job for job in steps.jobs if job.task is None]
        calls: list[Coroutine[Any, Any, Any]] = [
            self.models.expert_logits(view, job, crops if query.pools else crops[list(job.images)], pool=query.pools)
            for job in steps.jobs
            if job.task is not None
        ]
        if base_jobs:
            assert shown is not None
            calls.append(self.models.base_logits(shown, base_jobs))
        with watch.stage("experts"):
            results = await gather(calls)
        base_logits = iter(results.pop() if base_jobs else ())
        expert_logits = iter(results)
        logits = [next(base_logits if job.task is None else expert_logits) for job in steps.jobs]
        with watch.stage("answer"):
            predictions = await self._think(query, len(crops), answer, steps, logits)
        return Answered(view, steps, crops, features, predictions)

    async def _think(
        self, query: Query, num_images: int, rule: Callable[..., Result], /, *args: Any, **kwargs: Any
    ) -> Result:
        """A rule's arithmetic: off the event loop where many images or all tasks make it take milliseconds."""
        if query.label_space == "task" and num_images <= _FEW_IMAGES:
            return rule(*args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self._rules, partial(rule, *args, **kwargs))

    async def crops(self, uploads: Sequence[Upload], view: View, background: str | None) -> np.ndarray:
        """The images decoded and cropped, uint8 [B, H, W, 3]. Raises `ImageError` that names each that can't be."""
        if self._cropper is None:  # all versions of a store share one base
            cfg = view.manifest.base.preprocess_cfg
            assert cfg is not None, "`start` refuses a base that has no architecture"
            self._cropper = Cropper(cfg, max_pixels=self.options.max_pixels)
        loop, cropper = asyncio.get_running_loop(), self._cropper
        calls = [loop.run_in_executor(self._decoders, cropper.crop, upload, background) for upload in uploads]
        found = await asyncio.gather(*calls, return_exceptions=True)
        bad = [(i, error) for i, error in enumerate(found) if isinstance(error, BaseException)]
        for _, error in bad:
            if not isinstance(error, ImageError):
                raise error
        if bad:
            many = len(uploads) > 1
            refused = ImageError("; ".join(f"image {i + 1} of {len(uploads)}: {e}" if many else str(e) for i, e in bad))
            refused.errors = tuple((f"image.{i}", str(e)) for i, e in bad)
            raise refused
        return np.stack([crop for crop in found if isinstance(crop, np.ndarray)])

    @asynccontextmanager
    async def in_time(self) -> AsyncIterator[None]:
        """What answers one request: within its time, and while there is room.

        Raises `NotReadyError`, `OverloadedError`, `RequestTimeoutError`.
        """
        with self._slot():
            try:
                async with asyncio.timeout(self.options.request_timeout_s):
                    yield
            except TimeoutError:
                raise RequestTimeoutError(
                    f"no answer within {self.options.request_timeout_s:g} s: the service is overloaded, or an expert "
                    "is still being rebuilt. Retry, or send fewer images at once"
                ) from None

    @contextmanager
    def _slot(self) -> Iterator[None]:
        if self._draining:
            raise NotReadyError("the service is stopping: send the request to another one")
        if self._in_flight >= self.options.max_queued_requests:
            raise OverloadedError(f"{self._in_flight} predictions are in flight already: retry in a moment")
        self._in_flight += 1
        try:
            yield
        finally:
            self._in_flight -= 1


async def gather(calls: Sequence[Coroutine[Any, Any, Result]]) -> list[Result]:
    """All results. The first error cancels the calls that still run, because nothing will use their results."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
