"""The name of a request: in its answer (`X-Request-Id`), in problem documents, and in the log.

Ray Serve names every request, by the client's own header if there is one, and adds the name to every answer. An
application without Serve around it does the same here.
"""

from __future__ import annotations

import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADER = "X-Request-Id"
_KEY = "condu.request_id"
_LONGEST = 128


def request_id(scope: Scope) -> str:
    """That of the request with this scope."""
    found: str = scope.get(_KEY, "")
    return found


class RequestId:
    """ASGI middleware: names requests that have no name yet."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get(HEADER)
        name = scope[_KEY] = given[:_LONGEST] if given else uuid.uuid4().hex

        async def named(message: Message) -> None:
            if message["type"] == "http.response.start" and given is None:  # else Serve adds what it gave us
                MutableHeaders(scope=message).append(HEADER, name)
            await send(message)

        await self._app(scope, receive, named)
