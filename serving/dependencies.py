"""What routes depend on: the parts of the service that they work with, and a caller who may do what they do.

Every caller is anonymous and has every scope. Authentication belongs in `identify`: each route of the API declares the
scope that it needs already.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any

from fastapi import Depends, Request

from serving.catalogue import Catalogue
from serving.errors import ForbiddenError
from serving.exhibits import Exhibits
from serving.metrics import Metrics
from serving.service import Service


@dataclass(frozen=True)
class Parts:
    """What one application serves from."""

    service: Service
    catalogue: Catalogue
    exhibits: Exhibits
    metrics: Metrics


class Scope(StrEnum):
    """A right that a route can require."""

    PREDICT = "predict"
    """Classify images."""
    READ = "read"
    """List tasks and versions."""


@dataclass(frozen=True)
class Caller:
    """Who sent a request, and what they may do."""

    name: str
    scopes: frozenset[Scope]


ANONYMOUS = Caller("anonymous", frozenset(Scope))


async def parts_of(request: Request) -> Parts:
    """The parts of the application that received the request. A coroutine: FastAPI runs plain functions in threads."""
    parts: Parts = request.app.state.parts
    return parts


PartsOfApp = Annotated[Parts, Depends(parts_of)]


async def identify() -> Caller:
    """Who sent the request."""
    return ANONYMOUS


def requires(scope: Scope) -> Any:
    """One of a route's `dependencies`: lets callers with the scope through.

    For others it raises `ForbiddenError`, before the route reads the body.
    """

    async def check(caller: Annotated[Caller, Depends(identify)]) -> None:
        if scope not in caller.scopes:
            raise ForbiddenError(f"{caller.name} may not do this: it requires the scope {scope.value!r}")

    return Depends(check)
