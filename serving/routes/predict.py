"""`POST /v1/predict`."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request
from fastapi.responses import Response

from fusion.errors import ConduError
from serving.bodies.reading import read_request
from serving.callers import Scope
from serving.dependencies import CallerOfRequest, PartsOfApp, requires
from serving.request_id import request_id
from serving.routes.bodies import body_of
from serving.routes.responses import all_errors
from serving.schemas import PredictFields, PredictResponse

router = APIRouter(tags=["predict"])


@router.post(
    "/v1/predict",
    summary="Classify images",
    response_model=PredictResponse,
    responses=all_errors(),
    openapi_extra=body_of(PredictFields),
    dependencies=[requires(Scope.PREDICT)],
)
async def predict(request: Request, parts: PartsOfApp, caller: CallerOfRequest) -> Response:
    """Send a form with one or more files named `image`, JSON with `images`, or one image as the body with the fields
    in the query string:
    `curl --data-binary @cat.jpg -H 'Content-Type: image/jpeg' '…/v1/predict?labels=cat&labels=dog'`."""
    service, metrics = parts.service, parts.metrics
    space, status = "unknown", 500
    try:
        uploads, fields = await read_request(request, service.options, PredictFields, parts.fetcher)
        caller.spend_images(len(uploads))
        query = service.query(fields)
        space = query.label_space
        response = await service.predict(uploads, query, fields.version, request_id(request.scope))
        status = 200
        metrics.predicted(space, response.seconds, len(uploads), response.expert_forwards)
        # as it is: FastAPI would validate once more what was just built
        return Response(response.model_dump_json(), media_type="application/json")
    except ConduError as error:
        status = error.http_status
        raise
    except asyncio.CancelledError:
        status = 499  # the client went away
        raise
    finally:
        metrics.requested(space, status)
