"""A replica of the service: the HTTP application, the version being served, and the models, in one process.

Whatever a request needs is here, so no image or feature ever crosses a process. Ray Serve runs the replicas and sends
requests to them; `serving.app` says how many.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

import torch
from PIL import Image

from fusion.answers.view import View
from serving.door import Door
from serving.http import build_http
from serving.metrics.serve import ServeMetrics
from serving.models import Models
from serving.options import ServiceOptions
from serving.replica_log import log_with_serve
from serving.request_log.recorder import open_recorder
from serving.service import Service
from serving.tokens.keeper import TokenKeeper
from serving.watch import VersionWatcher

logger = logging.getLogger(__name__)

_STAGE_TIMEOUT_S = 60.0
_HEALTH_PERIOD_S = 30.0
_HEALTH_DEADLINE_S = 20.0


class Replica:
    """What `serve.ingress` wraps. Serve asks it for its application once it is constructed, base loaded and warm."""

    def __init__(self, options: ServiceOptions) -> None:
        log_with_serve()
        torch.set_num_threads(max(1, round(options.num_cpus)))
        Image.MAX_IMAGE_PIXELS = options.max_pixels  # else Pillow refuses images above twice its own threshold
        cache = options.address.open_cache()
        self._store = cache.store
        self._metrics = ServeMetrics()
        self._models = Models(options, cache, self._metrics)
        self._watcher = VersionWatcher(cache, poll_s=options.poll_s, stage=self._stage)
        self._recorder = open_recorder(options.log, self._store, self._models, self._metrics)
        self._service = Service(options, self._watcher, self._models, self._metrics, self._recorder)
        self._keeper = TokenKeeper(self._store, poll_s=options.poll_s, limits=options.limits)
        self._background: list[asyncio.Task[None]] = []

    def __serve_build_asgi_app__(self) -> Any:
        app = build_http(self._service, self._store, self._metrics, Door(self._service.options, self._keeper))

        async def start() -> None:
            self._background = [asyncio.create_task(self._watcher.run()), asyncio.create_task(self._warm())]
            if self._service.options.asks_for_tokens:
                self._background.append(asyncio.create_task(self._keeper.run()))

        async def stop() -> None:
            for task in self._background:
                task.cancel()
            if self._recorder is not None:
                await self._recorder.close()
            self._models.batcher.close()

        app.router.on_startup.append(start)
        app.router.on_shutdown.append(stop)
        return app

    async def drain(self) -> None:
        """Called before the service stops, see `Service.drain`."""
        await self._service.drain()
        if self._recorder is not None:
            await self._recorder.flush()

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

    async def stats(self) -> dict[str, Any]:
        """What this replica has done since it started, for people and tests."""
        return self._models.stats()

    async def check_health(self) -> None:
        """The watcher must be alive: without it the version being served would never change again. And the models must
        answer: a forward of one image within a deadline, unless one ended recently. Serve replaces a replica after
        three failures."""
        if any(task.done() and not task.cancelled() and task.exception() for task in self._background):
            raise RuntimeError("a background task of the replica has ended")
        if time.monotonic() - self._models.answered > _HEALTH_PERIOD_S:
            async with asyncio.timeout(_HEALTH_DEADLINE_S):
                await self._models.probe()

    async def _warm(self) -> None:
        await self._models.probe()
        self._service.models_state = "ready"

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
                staged = await self._models.stage(after, changed)
            logger.info("staged version=%d changed=%d rebuilt=%d", after.version, len(changed), staged)
