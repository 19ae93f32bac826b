"""The replicas that hold models: the base, and the experts. Ray Serve runs them; `serving.app` says how many.

Both take crops of any number of images and pass them one by one to a batched method, so that batches fill up across
requests. One thread runs the forwards (two at once on one device are slower than one after the other); loading has its
own threads, so that a cold expert does not hold up the warm ones.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import torch
from ray import serve

from fusion.answers.label_spaces import Job
from fusion.answers.predictor import ExpertModel, ModelShelf
from fusion.answers.view import load_task_view
from fusion.decouple import decoupled_tensors
from fusion.versions.history import Versions
from fusion.versions.manifest import Manifest
from serving.images import pixels
from serving.metrics import ExpertMetrics
from serving.options import ServiceOptions
from serving.replica_log import log_with_serve
from serving.seats import Seats
from serving.watch import newest_readable

logger = logging.getLogger(__name__)
Result = TypeVar("Result")

_LOADERS = 2
_HEALTH_PERIOD_S = 30.0
_HEALTH_DEADLINE_S = 20.0


class ModelReplica:
    """What both kinds share: the base, the compute thread, and a health check that runs a real forward."""

    def __init__(self, options: ServiceOptions) -> None:
        log_with_serve()
        torch.set_num_threads(max(1, round(options.num_cpus)))
        self.options = options
        self.cache = options.address.open_cache()
        self.versions = Versions(self.cache.store)
        started = time.perf_counter()
        newest, _ = newest_readable(self.versions)
        self.shelf = ModelShelf(self.cache, newest, capacity=options.cached_experts, device=options.device)
        self._preprocess_cfg = newest.base.preprocess_cfg or {}
        self._computing = ThreadPoolExecutor(1, thread_name_prefix="compute")
        self._answered = 0.0
        self._counts = {"batches": 0, "images": 0, "largest_batch": 0}
        # the largest batch there is: memory is allocated and kernels are chosen here, not under the first request
        width, height = reversed(self.shelf.base.clip.image_size)
        self._blank = np.zeros((height, width, 3), np.uint8)
        self._encode(self.shelf.base, [self._blank] * options.max_batch_size)
        seconds = time.perf_counter() - started
        logger.info("base loaded base=%s device=%s s=%.2f", newest.base.sha256[:12], options.device, seconds)

    async def compute(self, work: Callable[..., Result], *args: Any) -> Result:
        """Run model work in the compute thread."""
        result = await asyncio.get_running_loop().run_in_executor(self._computing, work, *args)
        self._answered = time.monotonic()
        return result

    async def encode(self, model: ExpertModel, crops: Sequence[np.ndarray]) -> list[torch.Tensor]:
        """Unit image features [D] of each crop, from one batch."""
        self._counts["batches"] += 1
        self._counts["images"] += len(crops)
        self._counts["largest_batch"] = max(self._counts["largest_batch"], len(crops))
        return await self.compute(self._encode, model, crops)

    def _encode(self, model: ExpertModel, crops: Sequence[np.ndarray]) -> list[torch.Tensor]:
        batch = pixels(np.stack(crops), self._preprocess_cfg)
        return list(model.clip.image_features(batch, batch_size=self.options.max_batch_size))

    async def stats(self) -> dict[str, Any]:
        """What this replica has done since it started, for people and tests."""
        return {"pid": os.getpid(), **self._counts}

    async def check_health(self) -> None:
        """A forward of one image within a deadline, unless one finished recently. Serve replaces a replica after three
        failures."""
        if time.monotonic() - self._answered > _HEALTH_PERIOD_S:
            async with asyncio.timeout(_HEALTH_DEADLINE_S):
                await self.compute(self._encode, self.shelf.base, [self._blank])


class BaseReplica(ModelReplica):
    """The base: features for routing, and its share of the logits."""

    def __init__(self, options: ServiceOptions) -> None:
        super().__init__(options)
        self._one.set_max_batch_size(options.max_batch_size)  # type: ignore[attr-defined]
        self._one.set_batch_wait_timeout_s(options.batch_wait_s)  # type: ignore[attr-defined]

    async def features(self, crops: np.ndarray) -> np.ndarray:
        """Unit image features, float32 [B, D], of crops uint8 [B, H, W, 3]."""
        return torch.stack(await asyncio.gather(*(self._one(crop) for crop in crops))).numpy()

    async def logits(self, features: np.ndarray, jobs: Sequence[Job]) -> list[np.ndarray]:
        """Logits of each job, float32 [len(job.images), len(job.classes)], from what `features` returned, [B, D]."""
        unit = torch.from_numpy(np.array(features))

        def work() -> list[np.ndarray]:
            base = self.shelf.base
            return [base.job_logits(unit[list(job.images)], job).numpy() for job in jobs]

        return await self.compute(work)

    @serve.batch
    async def _one(self, crops: list[np.ndarray]) -> list[torch.Tensor]:
        return await self.encode(self.shelf.base, crops)


class ExpertReplica(ModelReplica):
    """Experts, rebuilt on demand. Serve routes by the expert's key to a replica that has it.

    Two caches by the same key work together. `serve.multiplexed` is how a replica tells the routers which models it
    has, and the only public way; but it loads one model at a time under one lock, so a cold expert would hold up every
    other. Therefore it holds only the keys (its "model" is the key itself, which loads instantly), and our
    `ExpertCache` of the same capacity, used in the same order, holds the models with one lock per key. If the two ever
    differ, a request finds its expert cold: slower, never wrong. `Seats` limits the experts in use at once to the same
    number.
    """

    def __init__(self, options: ServiceOptions) -> None:
        super().__init__(options)
        self._seats = Seats(options.cached_experts)
        self._loading: dict[str, asyncio.Future[ExpertModel]] = {}
        self._loaders = ThreadPoolExecutor(_LOADERS, thread_name_prefix="load")
        self._manifests: dict[int, Manifest] = {}
        self._metrics = ExpertMetrics()
        # Serve fills a batch first and splits it by expert afterwards: room for one batch per warm expert
        self._one.set_max_batch_size(expert_window(options))  # type: ignore[attr-defined]
        self._one.set_batch_wait_timeout_s(options.batch_wait_s)  # type: ignore[attr-defined]
        self._announce = serve.multiplexed(max_num_models_per_replica=options.cached_experts)(_itself)

    async def logits(self, version: int, job: Job, crops: np.ndarray) -> np.ndarray:
        """Logits of a job's own crops, float32 [B, len(job.classes)], from the expert whose key the call is routed by.

        Raises the store's errors where a cold expert cannot be read.
        """
        assert job.task is not None
        key = serve.get_multiplexed_model_id()
        async with self._seats.take(key):
            await self._announce(key)
            model = await self._expert(key, version, job.task)
            features = torch.stack(await asyncio.gather(*(self._one((model, crop)) for crop in crops)))
            logits = await self.compute(model.job_logits, features, job)
        return logits.numpy()

    async def stage(self, version: int, changed: dict[str, str]) -> int:
        """Rebuild in advance those experts in memory that a publish changed, and return how many.

        The most recently used first, and at most half of the cache: until the swap the old ones are still in use.

        Args:
            changed: task name to the expert's new key.
        """
        warm = [key.rpartition("@")[0] for key in reversed(self.shelf.experts.keys())]
        tasks = [task for task in dict.fromkeys(warm) if task in changed][: max(1, self.options.cached_experts // 2)]
        for task in tasks:
            async with self._seats.take(changed[task]):
                await self._expert(changed[task], version, task)
        return len(tasks)

    async def stats(self) -> dict[str, Any]:
        return {**await super().stats(), "experts": self.shelf.experts.keys()}

    @serve.batch
    async def _one(self, items: list[tuple[ExpertModel, np.ndarray]]) -> list[torch.Tensor]:
        # one expert per batch: Serve splits by the key that each call was routed by
        return await self.encode(items[0][0], [crop for _, crop in items])

    async def _expert(self, key: str, version: int, task: str) -> ExpertModel:
        # a burst of requests for a cold expert waits here for one load without holding threads; a cancelled request
        # does not cancel the load, which others wait for
        loading = self._loading.get(key)
        if loading is None:
            if (model := self.shelf.experts.peek(key)) is not None:
                self._metrics.asked(hit=True)
                return model
            for used in self._seats.taken:
                self.shelf.experts.peek(used)  # counts as a use, so that no expert in use is evicted
            loading = asyncio.get_running_loop().run_in_executor(self._loaders, self._get, key, version, task)
            self._loading[key] = loading
            loading.add_done_callback(lambda done: self._loaded(key, done))
        self._metrics.asked(hit=False)
        return await asyncio.shield(loading)

    def _loaded(self, key: str, done: asyncio.Future[ExpertModel]) -> None:
        self._loading.pop(key, None)
        if not done.cancelled() and (error := done.exception()):
            logger.warning("expert not loaded expert=%s: %s", key, error)

    def _get(self, key: str, version: int, task: str) -> ExpertModel:
        return self.shelf.experts.get(key, lambda: self._load(key, version, task))

    def _load(self, key: str, version: int, task: str) -> ExpertModel:
        started = time.perf_counter()
        manifest = self._manifests.get(version) or self.versions.read(version)
        self._manifests = {version: manifest}  # the last one: the experts that a publish made cold are of its version
        num_bytes = 0

        def counted() -> Any:
            nonlocal num_bytes
            for name, tensor in decoupled_tensors(self.cache, manifest, task):
                num_bytes += tensor.nbytes
                yield name, tensor

        view = load_task_view(self.cache, manifest, task)
        model = ExpertModel(self.shelf.base.clip.copy_with(counted()), view)
        seconds = time.perf_counter() - started
        self._metrics.loaded(seconds)
        logger.info("expert loaded expert=%s version=%d bytes=%d s=%.2f", key, version, num_bytes, seconds)
        return model


def expert_window(options: ServiceOptions) -> int:
    """How many images an expert replica collects before it splits them by expert."""
    return options.max_batch_size * min(4, options.cached_experts)


async def _itself(key: str) -> str:
    return key
