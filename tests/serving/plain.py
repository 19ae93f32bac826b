"""Models in this very process, for a service without a cluster."""

from __future__ import annotations

from collections.abc import Sequence

import httpx
import numpy as np
import torch

from fusion.answers.label_spaces import Job
from fusion.answers.predictor import ModelShelf
from fusion.answers.view import View
from fusion.store import Store
from fusion.store.address import StoreAddress
from fusion.store.node_cache import NodeCache
from fusion.versions.history import Versions
from serving.http import build_http
from serving.images import pixels
from serving.metrics import NoMetrics
from serving.options import ServiceOptions
from serving.service import Service
from serving.watch import VersionWatcher


class PlainModels:
    """`serving.service.Models` on one `ModelShelf`. Counts what it was asked."""

    def __init__(self, store: Store) -> None:
        newest = Versions(store).newest()
        assert newest is not None
        self.shelf = ModelShelf(NodeCache(store), newest)
        self.cfg = newest.base.preprocess_cfg or {}
        self.asked: list[str] = []

    async def features(self, crops: np.ndarray) -> np.ndarray:
        self.asked.append("features")
        return self.shelf.base.clip.image_features(pixels(crops, self.cfg)).numpy()

    async def base_logits(self, features: np.ndarray, jobs: Sequence[Job]) -> list[np.ndarray]:
        self.asked.append("base")
        unit = torch.from_numpy(features)
        return [self.shelf.base.job_logits(unit[list(job.images)], job).numpy() for job in jobs]

    async def expert_logits(self, view: View, job: Job, crops: np.ndarray) -> np.ndarray:
        assert job.task is not None
        self.asked.append(job.task)
        expert = self.shelf.expert(view, job.task)
        return expert.job_logits(expert.clip.image_features(pixels(crops, self.cfg)), job).numpy()


class PlainService:
    """A service with its HTTP face and a client, no cluster and no port."""

    def __init__(self, store: Store, **options: object) -> None:
        self.options = ServiceOptions(address=StoreAddress(store.url), **options)  # type: ignore[arg-type]
        self.models = PlainModels(store)
        self.watcher = VersionWatcher(NodeCache(store), poll_s=0.05)
        self.service = Service(self.options, self.watcher, self.models)
        self.service.models_state = "ready"
        self.http = build_http(self.service, store, NoMetrics())

    async def __aenter__(self) -> httpx.AsyncClient:
        await self.watcher.poll()
        transport = httpx.ASGITransport(self.http, raise_app_exceptions=False)
        self.client = httpx.AsyncClient(transport=transport, base_url="http://service")
        return self.client

    async def __aexit__(self, *_: object) -> None:
        await self.client.aclose()
