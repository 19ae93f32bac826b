"""What stands in Serve's proxies: a request whose replica is silent or gone is sent to another one, within its time.

A machine that loses its power closes no connection: Serve's proxy would wait for it until Ray has given it up, and then
answer 408 or 500 in plain text. Here a request that may be repeated and has no answer after a few seconds is sent once
more beside the first, and the first answer counts. One whose replica died is sent again at once. What remains without
an answer gets a problem document.

Serve makes its proxies itself, so Ray's processes are told of this by their environment:

    RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=serving.second_try:middlewares
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager

from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.request_id import HEADER

SILENT_S = "CONDU_SECOND_TRY_S"
"""The variable that says after how many seconds without an answer a request is sent a second time."""
_DEFAULT_SILENT_S = 8.0
_REPEATABLE = ("/v1/predict", "/v1/embed")
_SERVES_OWN_PATHS = "/-/"
_LONGEST_BODY = 8 << 20
_MOST_AT_ONCE = 16
"""Second requests in flight in one proxy: where all replicas are slow, more would make them slower."""
_TIMED_OUT = 408
"""What Serve answers to a request that took longer than its own limit."""


def middlewares() -> list[Middleware]:
    """What Serve puts around a proxy's application."""
    return [Middleware(SecondTry, silent_s=float(os.environ.get(SILENT_S, _DEFAULT_SILENT_S)))]


class SecondTry:
    """ASGI middleware. The body of a request is kept until it is answered, up to 8 MiB; a larger one gets one try."""

    def __init__(self, app: ASGIApp, *, silent_s: float = _DEFAULT_SILENT_S) -> None:
        self._app, self._silent_s = app, silent_s
        self._second = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith(_SERVES_OWN_PATHS):
            await self._app(scope, receive, send)
            return
        request = _Request(self._app, scope, receive, send)
        try:
            request.begin()
            if not await request.answered(self._silent_s) and request.may_repeat and self._second < _MOST_AT_ONCE:
                with self._counted():
                    request.begin()
                    await request.answered(None)
            elif not request.settled:
                await request.answered(None)
            await request.end()
        finally:
            request.cancel()

    @contextmanager
    def _counted(self) -> Iterator[None]:
        self._second += 1
        try:
            yield
        finally:
            self._second -= 1


class _Request:
    """One request and its tries, of which one gets to answer."""

    def __init__(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        self._app, self._scope, self._send = app, scope, send
        self._body = _Body(receive)
        self._tries: list[asyncio.Task[None]] = []
        self._answering: asyncio.Task[None] | None = None
        self._has_answer = asyncio.Event()
        self._timed_out = False

    @property
    def may_repeat(self) -> bool:
        """Whether it does no harm twice, and another replica may still answer in time."""
        method, path = self._scope["method"], self._scope["path"]
        harmless = method in ("GET", "HEAD") or (method == "POST" and path.endswith(_REPEATABLE))
        return harmless and self._body.whole and not self._body.client_left and not self._timed_out

    @property
    def settled(self) -> bool:
        """Whether there is nothing to wait for: a try answers, all have ended, or time is up."""
        return self._answering is not None or self._timed_out or all(task.done() for task in self._tries)

    def begin(self) -> None:
        """Send the request, once more."""
        self._tries.append(asyncio.create_task(self._try()))

    async def answered(self, timeout_s: float | None) -> bool:
        """Wait until the request is settled. Returns whether a try answers."""
        waiter = asyncio.create_task(self._has_answer.wait())
        try:
            async with asyncio.timeout(timeout_s):
                while not self.settled:
                    running = [task for task in self._tries if not task.done()]
                    await asyncio.wait([waiter, *running], return_when=asyncio.FIRST_COMPLETED)
        except TimeoutError:
            pass
        finally:
            waiter.cancel()
        return self._answering is not None

    async def end(self) -> None:
        """Wait until the answer is sent; where no try has one, send a problem document."""
        if self._answering is not None:
            await self._answering
        elif not self._body.client_left:
            await self._refuse()

    def cancel(self) -> None:
        for task in self._tries:
            task.cancel()

    async def _try(self) -> None:
        me, index, lost = asyncio.current_task(), 0, False

        async def receive() -> Message:
            nonlocal index
            index += 1
            return await self._body.message(index - 1)

        async def send(message: Message) -> None:
            nonlocal lost
            if message["type"] == "http.response.start" and self._answering is None:
                if lost := _is_serves_own(message):
                    self._timed_out = self._timed_out or message["status"] == _TIMED_OUT
                else:
                    self._answering = me
                    self._has_answer.set()
            if not lost and self._answering is me:
                await self._send(message)

        try:
            await self._app(dict(self._scope), receive, send)  # the headers are shared, and with them the request's id
        except Exception:
            if self._answering is me:
                raise

    async def _refuse(self) -> None:
        status, kind, detail = 503, "ReplicaLostError", "the replica that had the request is gone: send it again"
        if self._timed_out:
            status, kind, detail = 504, "RequestTimeoutError", "no replica answered in time: send it again"
        name = Headers(scope=self._scope).get(HEADER, "")
        problem = {
            "type": f"urn:condu:{kind}",
            "title": "Replica lost" if status == 503 else "Request timeout",
            "status": status,
            "detail": detail,
            "instance": name,
        }
        body = json.dumps(problem).encode()
        headers = {
            "content-type": "application/problem+json",
            "content-length": str(len(body)),
            "retry-after": "1",
            HEADER.lower(): name,
        }
        raw = [(key.encode(), value.encode("latin-1")) for key, value in headers.items()]
        await self._send({"type": "http.response.start", "status": status, "headers": raw})
        await self._send({"type": "http.response.body", "body": body})


class _Body:
    """The messages of a request's body, read once and given to every try."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._messages: list[Message | None] = []
        self._bytes = 0
        self._lock = asyncio.Lock()
        self.whole = True
        self.client_left = False

    async def message(self, index: int) -> Message:
        """The message with this number, as soon as it is there."""
        if index == len(self._messages):
            async with self._lock:
                if index == len(self._messages):
                    await self._read()
        message = self._messages[index]
        assert message is not None, "a body that is not kept is read by one try"
        if not self.whole:
            self._messages[index] = None
        return message

    async def _read(self) -> None:
        message = await self._receive()
        self.client_left = self.client_left or message["type"] == "http.disconnect"
        self._bytes += len(message.get("body", b""))
        self.whole = self.whole and self._bytes <= _LONGEST_BODY
        self._messages.append(message)


def _is_serves_own(start: Message) -> bool:
    """Whether an answer that begins so is an error of Serve's, which has no replica's answer. Ours are documents."""
    kind = Headers(raw=start["headers"]).get("content-type", "")
    return start["status"] in (_TIMED_OUT, 500, 503) and "json" not in kind
