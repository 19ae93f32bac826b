"""`GET /v1/tasks` and `GET /v1/versions`."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Query

from serving.callers import Scope
from serving.catalogue import PAGE, tasks_of
from serving.dependencies import PartsOfApp, requires
from serving.routes.responses import errors
from serving.schemas import TasksResponse, VersionsResponse

router = APIRouter(tags=["catalogue"], dependencies=[requires(Scope.READ)])


@router.get("/v1/tasks", summary="Tasks of a version", responses=errors(401, 403, 404, 410, 422, 429, 503))
async def tasks(
    parts: PartsOfApp,
    version: Annotated[int | None, Query(ge=1, description="Absent: the version being served")] = None,
) -> TasksResponse:
    return tasks_of(await parts.service.watcher.view(version))


@router.get(
    "/v1/versions", summary=f"Versions, newest first, {PAGE} per page", responses=errors(401, 403, 422, 429, 503)
)
async def versions(
    parts: PartsOfApp,
    before: Annotated[int | None, Query(ge=1, description="Only versions below this number")] = None,
) -> VersionsResponse:
    current = parts.service.watcher.current
    return await asyncio.to_thread(parts.catalogue.page, before=before, serving=current.version if current else None)
