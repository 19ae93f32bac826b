"""The page of a real service in a real browser."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import uvicorn
from playwright.sync_api import Browser, Page, sync_playwright

from tests.serving.helpers import free_port
from tests.serving.plain import PlainService

_DEADLINE_S = 60


@contextmanager
def served(service: PlainService) -> Iterator[str]:
    """The service on a port of loopback; its root, with a slash at the end."""
    port, loop = free_port(), asyncio.new_event_loop()
    server = uvicorn.Server(uvicorn.Config(service.http, port=port, log_level="warning"))

    async def serve() -> None:
        async with service:
            watching = asyncio.create_task(service.watcher.run())
            await server.serve()
            watching.cancel()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    try:
        for _ in range(10 * _DEADLINE_S):
            if server.started:
                break
            threading.Event().wait(0.1)
        assert server.started, "the service did not start"
        yield f"http://127.0.0.1:{port}/"
    finally:
        server.should_exit = True
        thread.join(_DEADLINE_S)


@contextmanager
def chromium() -> Iterator[Browser]:
    """Debian's Chromium. Skips the test where it is not installed."""
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("chromium is not installed: as root, apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def opened(browser: Browser, root: str, *, ready: str = "#gallery .card", **context: object) -> Iterator[Page]:
    """The page at `/`, loaded. Fails if the browser reports an error, or if anything is fetched from elsewhere."""
    with browser.new_context(**context) as opened_in:  # type: ignore[arg-type]
        page, problems, asked = opened_in.new_page(), [], []
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda line: problems.append(line.text) if "Content Security Policy" in line.text else None)
        page.on("request", lambda request: asked.append(request.url))
        page.goto(root)
        page.wait_for_selector(ready)
        yield page
        assert not problems, problems
        assert not [url for url in asked if not url.startswith((root, "blob:"))]
