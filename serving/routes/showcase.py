"""`GET /v1/showcase` and the sample images that it lists: what the page at `/` shows beside the tasks."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Path
from fastapi.responses import Response

from serving.callers import Scope
from serving.dependencies import PartsOfApp, requires
from serving.routes.responses import errors
from serving.schemas import ShowcaseResponse

router = APIRouter(tags=["catalogue"], dependencies=[requires(Scope.READ)])

_IMAGE = {"schema": {"type": "string", "format": "binary"}}


@router.get("/v1/showcase", summary="Figures of the tasks, and sample images", responses=errors(401, 403, 429, 503))
async def showcase(parts: PartsOfApp) -> ShowcaseResponse:
    """What the last run measured and left for people to look at. Empty where no run did."""
    view = await parts.service.watcher.view(None)
    return await asyncio.to_thread(parts.exhibits.shown, view)


@router.get(
    "/v1/showcase/{task}/{index}",
    summary="A sample image of a task",
    response_class=Response,
    responses={200: {"description": "The image", "content": {"image/*": _IMAGE}}, **errors(401, 403, 404, 422, 429)},
)
async def sample(parts: PartsOfApp, task: str, index: Annotated[int, Path(ge=0)]) -> Response:
    found = await asyncio.to_thread(parts.exhibits.sample, task, index)
    headers = {"Content-Security-Policy": "default-src 'none'", "X-Content-Type-Options": "nosniff"}
    return Response(found.encoded, media_type=found.media_type, headers=headers)
