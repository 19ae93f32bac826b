"""A service in this very process, without a cluster and without a port."""

from __future__ import annotations

from collections.abc import Sequence

import httpx
import numpy as np
import torch

from fusion.answers.label_spaces import Job
from fusion.answers.view import View
from fusion.store import Store
from fusion.store.address import StoreAddress
from fusion.store.node_cache import NodeCache
from serving.door import Door
from serving.http import build_http
from serving.metrics import Metrics, NoMetrics
from serving.models import Models
from serving.options import ServiceOptions
from serving.request_log.recorder import open_recorder
from serving.service import Service
from serving.tokens.keeper import TokenKeeper
from serving.watch import VersionWatcher


class PlainModels(Models):
    """The replica's models, which note what they were asked."""

    def __init__(self, store: Store, options: ServiceOptions | None = None, metrics: Metrics | None = None) -> None:
        options = options or ServiceOptions(address=StoreAddress(store.url))
        super().__init__(options, NodeCache(store), metrics or NoMetrics())
        self.asked: list[str] = []

    async def features(self, crops: np.ndarray) -> torch.Tensor:
        self.asked.append("features")
        return await super().features(crops)

    async def base_logits(self, features: torch.Tensor, jobs: Sequence[Job]) -> list[torch.Tensor]:
        self.asked.append("base")
        return await super().base_logits(features, jobs)

    async def expert_logits(self, view: View, job: Job, crops: np.ndarray, *, pool: bool = False) -> torch.Tensor:
        assert job.task is not None
        self.asked.append(job.task)
        return await super().expert_logits(view, job, crops, pool=pool)


class PlainService:
    """A service with its HTTP face and a client."""

    def __init__(
        self,
        store: Store,
        *,
        models: PlainModels | None = None,
        metrics: Metrics | None = None,
        log_store: Store | None = None,
        **options: object,
    ) -> None:
        self.options = ServiceOptions(address=StoreAddress(store.url), **options)  # type: ignore[arg-type]
        self.models = models or PlainModels(store, self.options, metrics)
        self.watcher = VersionWatcher(NodeCache(store), poll_s=0.05)
        told = metrics or NoMetrics()
        self.recorder = open_recorder(self.options.log, log_store or store, self.models, told)
        self.service = Service(self.options, self.watcher, self.models, told, self.recorder)
        self.service.models_state = "ready"
        self.keeper = TokenKeeper(store, poll_s=0.05, limits=self.options.limits)
        self.http = build_http(self.service, store, told, Door(self.options, self.keeper))

    async def __aenter__(self) -> httpx.AsyncClient:
        await self.watcher.poll()
        await self.keeper.poll()
        transport = httpx.ASGITransport(self.http, raise_app_exceptions=False)
        self.client = httpx.AsyncClient(transport=transport, base_url="http://service")
        return self.client

    async def __aexit__(self, *_: object) -> None:
        await self.client.aclose()
        if self.recorder is not None:
            await self.recorder.close()
        self.models.batcher.close()
