"""The ingress replica: the HTTP application, the version being served, and handles to the model replicas."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from ray.serve.handle import DeploymentHandle

from fusion.answers.label_spaces import Job
from fusion.answers.view import View
from serving.http import build_http
from serving.metrics import IngressMetrics
from serving.options import ServiceOptions
from serving.replica_calls import call
from serving.replica_log import log_with_serve
from serving.service import Service
from serving.watch import VersionWatcher

logger = logging.getLogger(__name__)

_PROBE_TIMEOUT_S = 10.0
_STAGE_TIMEOUT_S = 60.0


class RemoteModels:
    """`Models` in other replicas. `serving.replica_calls` says what a call guarantees."""

    def __init__(self, base: DeploymentHandle, experts: DeploymentHandle) -> None:
        self._base = base
        self._experts = experts

    async def features(self, crops: np.ndarray) -> np.ndarray:
        found: np.ndarray = await call(self._base.features, crops)
        return found

    async def base_logits(self, features: np.ndarray, jobs: Sequence[Job]) -> list[np.ndarray]:
        found: list[np.ndarray] = await call(self._base.logits, features, list(jobs))
        return found

    async def expert_logits(self, view: View, job: Job, crops: np.ndarray) -> np.ndarray:
        assert job.task is not None
        # the key routes the call to a replica that has the expert; a cold one is rebuilt from the version
        handle = self._experts.options(multiplexed_model_id=view.tasks[job.task].expert)
        found: np.ndarray = await call(handle.logits, view.version, job, crops)
        return found

    async def ping(self) -> None:
        """Return when a base and an expert replica have answered, which they do once they are warm."""
        await call(self._base.stats)
        await call(self._experts.stats)

    async def stage(self, version: int, changed: dict[str, str]) -> int:
        """Have every expert replica rebuild those of its experts that changed, and return how many there were."""
        return sum(await self._experts.broadcast("stage", version, changed).results_async())


class Ingress:
    """What `serve.ingress` wraps. Serve asks it for its application once it is constructed."""

    def __init__(self, options: ServiceOptions, base: DeploymentHandle, experts: DeploymentHandle) -> None:
        log_with_serve()
        torch.set_num_threads(1)
        Image.MAX_IMAGE_PIXELS = options.max_pixels  # else Pillow refuses images above twice its own threshold
        cache = options.address.open_cache()
        self._store = cache.store
        self._models = RemoteModels(base, experts)
        self._metrics = IngressMetrics()
        self._watcher = VersionWatcher(cache, poll_s=options.poll_s, stage=self._stage)
        self._service = Service(options, self._watcher, self._models)
        self._background: list[asyncio.Task[None]] = []

    def __serve_build_asgi_app__(self) -> Any:
        app = build_http(self._service, self._store, self._metrics)

        async def start() -> None:
            self._background = [asyncio.create_task(self._watcher.run()), asyncio.create_task(self._warm())]

        async def stop() -> None:
            for task in self._background:
                task.cancel()

        app.router.on_startup.append(start)
        app.router.on_shutdown.append(stop)
        return app

    async def drain(self) -> None:
        """Called before the service stops, see `Service.drain`."""
        await self._service.drain()

    async def describe(self) -> dict[str, Any]:
        """Where this replica listens, what it serves and whether it is ready, for `condu status`. JSON values only."""
        options, current = self._service.options, self._watcher.current
        return {
            "store": self._store.url,
            "url": f"http://{options.host}:{options.port}",
            "version": current.version if current else None,
            "ready": self._service.ready,
            "problem": self._watcher.problem,
        }

    async def check_health(self) -> None:
        """The watcher must be alive: without it the version being served would never change again."""
        if any(task.done() and not task.cancelled() and task.exception() for task in self._background):
            raise RuntimeError("a background task of the ingress has ended")

    async def _warm(self) -> None:
        while self._service.models_state != "ready":
            try:
                async with asyncio.timeout(_PROBE_TIMEOUT_S):
                    await self._models.ping()
                self._service.models_state = "ready"
            except Exception as error:
                self._service.models_state = f"waiting for the base and the experts ({type(error).__name__}: {error})"
                await asyncio.sleep(1)

    async def _stage(self, before: View | None, after: View) -> None:
        self._metrics.serving(after.version)
        old = before.tasks if before else {}
        changed = {
            name: task.expert
            for name, task in after.tasks.items()
            if task.has_expert and name in old and old[name].expert != task.expert
        }
        if changed:
            async with asyncio.timeout(_STAGE_TIMEOUT_S):
                staged = await self._models.stage(after.version, changed)
            logger.info("staged version=%d changed=%d rebuilt=%d", after.version, len(changed), staged)
