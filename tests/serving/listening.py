"""A plain service on a real port, for clients that want one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread

import uvicorn

from tests.serving.helpers import free_port
from tests.serving.plain import PlainService


@contextmanager
def listening(service: PlainService) -> Iterator[str]:
    """The service's HTTP application on a real port of loopback: its URL."""
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(service.http, host="127.0.0.1", port=port, log_level="error"))
    asyncio.run(service.watcher.poll())
    thread = Thread(target=server.run, daemon=True)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(10)
        service.models.batcher.close()
