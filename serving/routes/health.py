"""`GET /healthz` and `GET /readyz`: for load balancers and operators, open to every caller."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from serving.dependencies import PartsOfApp
from serving.schemas import ReadyResponse

router = APIRouter(tags=["operation"])


@router.head("/healthz", include_in_schema=False)
@router.get("/healthz", summary="Is the process alive?")
async def healthz() -> dict[str, str]:
    return {"status": "ok"}


@router.head("/readyz", include_in_schema=False)
@router.get(
    "/readyz",
    summary="Is a version loaded and warm? 503 until then",
    response_model=ReadyResponse,
    responses={503: {"model": ReadyResponse, "description": "Not yet"}},
)
async def readyz(parts: PartsOfApp) -> JSONResponse:
    service = parts.service
    view = service.watcher.current
    body = ReadyResponse(
        ready=service.ready,
        version=view.version if view else None,
        tasks=len(view.tasks) if view else 0,
        models=service.models_state,
        problem=service.watcher.problem,
    )
    return JSONResponse(body.model_dump(), status_code=200 if service.ready else 503)
