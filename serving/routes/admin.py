"""`POST /v1/versions/rollback` and `DELETE /v1/tasks/{name}`: publish a version that fuses nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Annotated, Any
from urllib.parse import urlsplit

from fastapi import APIRouter, Depends, Path, Request
from pydantic import ValidationError

from fusion.versions import edits
from fusion.versions.history import Versions
from serving.bodies.stream import body_of
from serving.callers import Scope
from serving.dependencies import CallerOfRequest, Parts, PartsOfApp, requires
from serving.errors import ForbiddenError, MediaTypeError, RequestError, RequestTimeoutError
from serving.loopback import is_loopback
from serving.routes.responses import errors
from serving.schemas import EditResponse, RollbackRequest, mistakes

router = APIRouter(tags=["admin"], dependencies=[requires(Scope.ADMIN)])
_ERRORS = errors(401, 403, 404, 410, 413, 415, 422, 429, 503, 504)
_MAX_BODY_BYTES = 1000


async def _from_here(request: Request, parts: PartsOfApp) -> None:
    """Without tokens, a page in a browser on this machine must not get here, neither with a form nor under a name that
    resolves to loopback."""
    if parts.door.options.asks_for_tokens:
        return
    host = urlsplit(f"//{request.headers.get('host', '')}").hostname or ""
    if not is_loopback(host) or "origin" in request.headers:
        raise ForbiddenError("without tokens this is answered to programs on this machine alone (serve.auth)")


@router.post(
    "/v1/versions/rollback",
    summary="Publish the state of an old version as a new one",
    responses=_ERRORS,
    dependencies=[Depends(_from_here)],
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": RollbackRequest.model_json_schema()}},
        }
    },
)
async def rollback(request: Request, parts: PartsOfApp, caller: CallerOfRequest) -> EditResponse:
    """The versions in between stay, so a roll-back can be undone. Does nothing if the newest has that state already."""
    body = await _read(request)
    return await _edit(parts, lambda versions: edits.rollback(versions, body.to, created={"token": caller.name}))


@router.delete(
    "/v1/tasks/{name}",
    summary="Publish the newest version without a task",
    responses=_ERRORS,
    dependencies=[Depends(_from_here)],
)
async def remove_task(
    name: Annotated[str, Path(max_length=64)], parts: PartsOfApp, caller: CallerOfRequest
) -> EditResponse:
    """Every other task answers exactly as before. Older versions hold the task until they are collected."""
    return await _edit(parts, lambda versions: edits.remove_task(versions, name, created={"token": caller.name}))


async def _read(request: Request) -> RollbackRequest:
    """Read here, not by FastAPI, which would take any number of bytes from anybody before it asks who it is."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise MediaTypeError('the body must be JSON, with `Content-Type: application/json`: {"to": 7}')
    try:
        return RollbackRequest.model_validate_json(
            await body_of(request, _MAX_BODY_BYTES, advice='{"to": 7} is all that it takes')
        )
    except ValidationError as error:
        raise RequestError.of(mistakes(error.errors())) from None


async def _edit(parts: Parts, change: Callable[[Versions], Any]) -> EditResponse:
    try:
        async with asyncio.timeout(parts.door.options.request_timeout_s):
            edit: edits.Edit = await asyncio.to_thread(change, Versions(parts.store))
    except TimeoutError:
        raise RequestTimeoutError(
            "the store did not take the change in time, and may still take it: look at /v1/versions"
        ) from None
    manifest = edit.manifest
    return EditResponse(
        version=manifest.version,
        changed=edit.changed,
        tasks=list(manifest.state.tasks),
        removed=list(manifest.removed),
    )
