"""What routes depend on: the parts of the service that they work with, and a caller who may do what they do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from fusion.store import Store
from serving.callers import Caller, Scope
from serving.catalogue import Catalogue
from serving.door import Door
from serving.errors import ForbiddenError
from serving.exhibits import Exhibits
from serving.fetching.fetcher import Fetcher
from serving.metrics import Metrics
from serving.service import Service


@dataclass(frozen=True)
class Parts:
    """What one application serves from."""

    service: Service
    catalogue: Catalogue
    exhibits: Exhibits
    metrics: Metrics
    door: Door
    store: Store
    fetcher: Fetcher


async def parts_of(request: Request) -> Parts:
    """The parts of the application that received the request. A coroutine: FastAPI runs plain functions in threads."""
    parts: Parts = request.app.state.parts
    return parts


PartsOfApp = Annotated[Parts, Depends(parts_of)]


_BEARER = HTTPBearer(
    auto_error=False,
    scheme_name="token",
    description="A token of `condu token create`. Not asked for by a service on loopback, or with `serve.auth: none`.",
)


async def identify(
    parts: PartsOfApp, given: Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)]
) -> Caller:
    """Who sent the request. Raises `UnauthorizedError`."""
    return await parts.door.caller(given.credentials if given else None)


CallerOfRequest = Annotated[Caller, Depends(identify)]


def requires(scope: Scope) -> Any:
    """One of a route's `dependencies`: lets callers with the scope through, and counts their requests.

    For others it raises `UnauthorizedError`, `ForbiddenError` or `LimitError`, before the route reads the body. A route
    that works on images counts them as well: `Caller.spend_images`.
    """

    async def check(caller: CallerOfRequest) -> None:
        if scope not in caller.scopes:
            raise ForbiddenError(f"{caller.name} may not do this: it requires the scope {scope.value!r}")
        caller.spend_request()

    return Depends(check)
