"""The models of one replica: the base, and experts that are rebuilt on demand and kept within `expert_memory`.

Nothing here knows HTTP or Ray. Forwards run in the one compute thread (`serving.batching`); cold experts are rebuilt in
threads of their own, so that they do not hold up the warm ones. An expert that can be applied to the base as it is
shares forwards with others, and is built as well once that pays (`serving.costs`). Bounded in memory: by the budget,
and by what few loaders have in hand; an expert that is evicted lives until the requests that hold it are answered.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import torch

from fusion.answers.clip import Clip
from fusion.answers.label_spaces import Job
from fusion.answers.live import LiveImages, LiveSide
from fusion.answers.predictor import ExpertModel, ModelShelf
from fusion.answers.rules.views import pooled
from fusion.answers.view import View
from fusion.memory import release_freed
from fusion.store.node_cache import NodeCache
from fusion.versions.history import Versions
from serving.batching import Batcher, Pool, Slices
from serving.costs import FEW, Costs, Payoff, seconds_of
from serving.images import Normaliser
from serving.metrics import Metrics, Model
from serving.options import ServiceOptions
from serving.texts import TextFeatures
from serving.watch import newest_readable

logger = logging.getLogger(__name__)

BASE = "base"
"""The base's lane, and its name among text features. No expert's key: those have an `@`."""
_LOADERS = 2

_Item = tuple[np.ndarray, str, LiveSide]
"""A crop, and the key of the expert that is applied to it."""


class Models:
    """Crops are uint8 [B, H, W, 3]; features, [B, D], and logits are float32 on the CPU. For one event loop.

    Args:
        options: of the service.
        cache: of the store that it serves.
    Raises:
        UnknownVersionError: nothing was published yet, so there is no base.
    """

    def __init__(self, options: ServiceOptions, cache: NodeCache, metrics: Metrics) -> None:
        started = time.perf_counter()
        newest, _ = newest_readable(Versions(cache.store))
        self.shelf = ModelShelf(cache, newest, expert_memory=options.expert_memory, device=options.device, live=True)
        self.batcher = Batcher(options.max_batch_size)
        self.answered = 0.0
        """When the last forward ended, in `time.monotonic` seconds."""
        self._cache = cache
        self._metrics = metrics
        self._max_batch_size = options.max_batch_size
        self._normaliser = Normaliser(newest.base.preprocess_cfg or {})
        self._loaders = ThreadPoolExecutor(_LOADERS, thread_name_prefix="load")
        self._texts = TextFeatures(self.batcher, self._loaders, options.text_memory, metrics)
        self._loading: dict[str, asyncio.Future[ExpertModel]] = {}
        # the largest batch there is: memory is allocated and kernels are chosen here, not under the first request
        width, height = reversed(self.shelf.base.clip.image_size)
        self._blank = np.zeros((height, width, 3), np.uint8)
        for size in (1, options.max_batch_size):
            self._encode(self.shelf.base.clip, [self._blank] * size)
        self._costs: Costs | None = None
        self._payoff: Payoff | None = None
        if self.shelf.tower:
            noise = self.shelf.noise_sides(FEW)
            self._costs = self._measured_costs(self.shelf.tower, noise)
            if self.shelf.may_build:
                self._payoff = Payoff(seconds_of(lambda: self.shelf.build_noise(noise[0])))
        self._building: set[asyncio.Future[None]] = set()
        self._pools = {unit: Pool(partial(self._encode_live, unit=unit), self._joins) for unit in (True, False)}
        release_freed()
        seconds = time.perf_counter() - started
        logger.info("base loaded base=%s device=%s s=%.2f", newest.base.sha256[:12], options.device, seconds)

    async def features(self, crops: np.ndarray) -> torch.Tensor:
        """Unit image features of the base."""
        return await self._images(BASE, self.shelf.base, crops)

    async def embed_images(self, view: View, task: str | None, crops: np.ndarray, *, unit: bool) -> torch.Tensor:
        """Image features [B, D] of a task's expert; of the base, where no task is named or it has no expert."""
        return await self._images(*await self._named(view, task), crops, unit=unit)

    async def embed_texts(
        self, view: View, task: str | None, texts: Sequence[str], templates: tuple[str, ...], *, unit: bool
    ) -> torch.Tensor:
        """Text features [len(texts), D] of the same model, each the mean over templates."""
        key, model = await self._named(view, task)
        return await self._texts.of(key, model.text, texts, templates, unit=unit)

    async def base_logits(self, features: torch.Tensor, jobs: Sequence[Job]) -> list[torch.Tensor]:
        """The [len(job.images), len(job.classes)], from what `features` gave of all images."""
        base, found = self.shelf.base, []
        for job in jobs:
            texts = await self._texts.of(BASE, base.text, job.classes, job.templates)
            found.append(base.job_logits(features[list(job.images)], job, texts))
        return found

    async def expert_logits(self, view: View, job: Job, crops: np.ndarray, *, pool: bool = False) -> torch.Tensor:
        """An expert's logits, [len(job.images), len(job.classes)], of the job's own crops.

        Args:
            pool: the crops are views of the job's one image, whose features are `pooled`.
        Raises the store's errors where a cold expert cannot be read.
        """
        assert job.task is not None
        key = view.tasks[job.task].expert
        expert = await self._expert(view, job.task)
        features, texts = await asyncio.gather(
            self._images(key, expert, crops),
            self._texts.of(key, expert.text, job.classes, job.templates),
        )
        return expert.job_logits(pooled(features) if pool else features, job, texts)

    async def _named(self, view: View, task: str | None) -> tuple[str, ExpertModel]:
        if task is None or not view.tasks[task].has_expert:
            return BASE, self.shelf.base
        return view.tasks[task].expert, await self._expert(view, task)

    async def _images(self, key: str, model: ExpertModel, crops: np.ndarray, *, unit: bool = True) -> torch.Tensor:
        if model.live is None:
            whose: Model = "base" if key == BASE else "expert"
            forward = partial(self._encode_batch, whose, model.clip, unit=unit)
            return await self.batcher.images((key, unit), forward, list(crops))
        items: list[_Item] = [(crop, key, model.live) for crop in crops]
        alone = partial(self._encode_alone, unit=unit)
        features = await self.batcher.images((key, unit), alone, items, pool=self._pools[unit])
        if self._payoff and self._payoff.is_due(key):
            building = asyncio.get_running_loop().run_in_executor(self._loaders, self._build, key, model)
            self._building.add(building)
            building.add_done_callback(self._building.discard)
        return features

    async def stage(self, view: View, changed: Mapping[str, str]) -> int:
        """Rebuild in advance those experts in memory that a publish changed, texts included, and return how many.

        The most recently used first, and at most half of the memory: until the swap the old ones are still in use.

        Args:
            changed: task name to the expert's new key.
        """
        experts = self.shelf.experts
        warm = [key.rpartition("@")[0] for key in reversed(experts.keys())]
        tasks = [task for task in dict.fromkeys(warm) if task in changed]
        each = max(1, experts.used_bytes // max(1, len(warm)))
        tasks = tasks[: max(1, experts.budget_bytes // 2 // each)]
        for task in tasks:
            expert, named = await self._expert(view, task), view.tasks[task]
            await self._texts.of(named.expert, expert.text, named.classes, named.templates)
        return len(tasks)

    async def probe(self) -> None:
        """One forward of a blank image by the base, in its turn."""

        def forward() -> Slices[None]:
            self._encode(self.shelf.base.clip, [self._blank])
            return
            yield

        await self.batcher.steps(forward())

    def stats(self) -> dict[str, Any]:
        """What this replica has done since it started, for people and tests."""
        return {
            "pid": os.getpid(),
            **vars(self.batcher.counts),
            "experts": self.shelf.experts.keys(),
            "built": self.shelf.built.keys(),
        }

    def _encode(self, clip: Clip, crops: Sequence[np.ndarray], *, unit: bool = True) -> torch.Tensor:
        batch = self._normaliser.pixels(np.stack(crops))
        features = clip.image_features(batch, batch_size=self._max_batch_size, unit=unit)
        self.answered = time.monotonic()
        return features

    def _encode_batch(self, whose: Model, clip: Clip, crops: Sequence[np.ndarray], *, unit: bool) -> torch.Tensor:
        self._metrics.forward(whose, len(crops), int(whose == "expert"))
        return self._encode(clip, crops, unit=unit)

    def _encode_alone(self, items: Sequence[_Item], *, unit: bool) -> torch.Tensor:
        """Images of one expert: by its model, if it was built."""
        if (clip := self.shelf.built.peek(items[0][1])) is None:
            return self._encode_live(items, unit=unit)
        return self._encode_batch("expert", clip, [crop for crop, _, _ in items], unit=unit)

    def _encode_live(self, items: Sequence[_Item], *, unit: bool) -> torch.Tensor:
        """Images of any experts, each applied to the base."""
        assert self.shelf.tower is not None, "experts are live where there is a tower to apply them"
        counts = Counter(key for _, key, _ in items)
        self._metrics.forward("expert", len(items), len(counts))
        batch = self._normaliser.pixels(np.stack([crop for crop, _, _ in items]))
        features = self.shelf.tower.image_features(batch, [side for _, _, side in items], unit=unit)
        self.answered = time.monotonic()
        if self._costs and self._payoff:
            each = self._costs.live_s(len(items), len(counts)) / len(items)
            for key, num_images in counts.items():
                self._payoff.spent(key, each * num_images - self._costs.built_s(num_images))
        return features

    def _joins(self, lane: Hashable, counts: Sequence[int]) -> bool:
        assert isinstance(lane, tuple)
        assert self._costs is not None
        return self._costs.joins(counts, is_built=self.shelf.built.peek(lane[0]) is not None)

    def _measured_costs(self, tower: LiveImages, noise: Sequence[LiveSide]) -> Costs:
        crops, sides = [self._blank] * FEW, [tower.prepared(side) for side in noise]
        pixels = self._normaliser.pixels(np.stack(crops))

        def live(num_images: int, num_experts: int) -> None:
            tower.image_features(pixels[:num_images], [sides[i % num_experts] for i in range(num_images)])

        return Costs.measured(lambda num_images: self._encode(self.shelf.base.clip, crops[:num_images]), live)

    def _build(self, key: str, model: ExpertModel) -> None:
        assert model.build is not None
        assert self._payoff is not None
        started = time.perf_counter()
        try:
            model.build()
        except Exception as error:  # it is answered without
            logger.warning("expert not built expert=%s: %s", key, error)
            return
        seconds = time.perf_counter() - started
        release_freed()  # the model that it took the place of
        self._payoff.built_in(seconds)
        logger.info("expert built expert=%s s=%.3f", key, seconds)

    async def _expert(self, view: View, task: str) -> ExpertModel:
        # a burst of requests for a cold expert waits here for one load without holding threads; a cancelled request
        # does not cancel the load, which others wait for
        key = view.tasks[task].expert
        loading = self._loading.get(key)
        if loading is None:
            if (model := self.shelf.experts.peek(key)) is not None:
                self._metrics.expert_asked(hit=True)
                return model
            loading = asyncio.get_running_loop().run_in_executor(self._loaders, self._load, view, task)
            self._loading[key] = loading
            loading.add_done_callback(lambda done: self._loaded(key, done))
        self._metrics.expert_asked(hit=False)
        return await asyncio.shield(loading)

    def _load(self, view: View, task: str) -> ExpertModel:
        started = time.perf_counter()
        if (trigger := view.tasks[task].trigger) is not None:
            self._cache.path(trigger)  # apart from what follows, which finds it there
            self._metrics.trigger_read(time.perf_counter() - started, trigger.bytes)
        model = self.shelf.expert(view, task)
        seconds = time.perf_counter() - started
        self._metrics.expert_loaded(seconds)
        key, num_bytes = view.tasks[task].expert, self.shelf.image_bytes(model)
        logger.info("expert loaded expert=%s version=%d bytes=%d s=%.3f", key, view.version, num_bytes, seconds)
        return model

    def _loaded(self, key: str, done: asyncio.Future[ExpertModel]) -> None:
        self._loading.pop(key, None)
        if not done.cancelled() and (error := done.exception()):
            logger.warning("expert not loaded expert=%s: %s", key, error)
