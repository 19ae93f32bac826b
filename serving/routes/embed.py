"""`POST /v1/embed`."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response

from serving.bodies.reading import read_request
from serving.callers import Scope
from serving.dependencies import CallerOfRequest, PartsOfApp, requires
from serving.embed_schemas import EmbedFields, EmbedResponse
from serving.embedding import embed as answer
from serving.routes.bodies import body_of
from serving.routes.responses import all_errors

router = APIRouter(tags=["predict"])


@router.post(
    "/v1/embed",
    summary="Embed images and texts",
    response_model=EmbedResponse,
    responses=all_errors(),
    openapi_extra=body_of(EmbedFields, images_required=False),
    dependencies=[requires(Scope.PREDICT)],
)
async def embed(request: Request, parts: PartsOfApp, caller: CallerOfRequest) -> Response:
    """Features of the base, or of a task's expert: what is near what, as that task has learned to see it. A JSON body
    does for texts alone: `curl -H 'Content-Type: application/json' -d '{"texts": ["a red kite"]}' …/v1/embed`."""
    uploads, fields = await read_request(
        request, parts.service.options, EmbedFields, parts.fetcher, images_required=False
    )
    caller.spend_images(len(uploads))
    response = await answer(parts.service, uploads, fields)
    return Response(response.model_dump_json(), media_type="application/json")
