"""`POST /v1/predict`."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from fusion.errors import ConduError
from serving.callers import Scope
from serving.dependencies import CallerOfRequest, PartsOfApp, requires
from serving.reading import read_prediction
from serving.routes.responses import all_errors
from serving.schemas import PredictFields, PredictResponse

router = APIRouter(tags=["predict"])


def _body() -> dict[str, Any]:
    """OpenAPI for a body that FastAPI can't describe: a form, or an image with the same fields as parameters."""
    fields = PredictFields.model_json_schema()["properties"]
    image = {"type": "array", "items": {"type": "string", "format": "binary"}, "description": "The images"}
    form = {"type": "object", "required": ["image"], "properties": {"image": image, **fields}}
    raw = {"schema": {"type": "string", "format": "binary"}}
    return {
        "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": form}, "image/*": raw}},
        "parameters": [
            {
                "name": name,
                "in": "query",
                "required": False,
                "schema": {key: value for key, value in field.items() if key != "description"},
                "description": f"{field['description']} (With an `image/*` body; in a form it is a field.)",
            }
            for name, field in fields.items()
        ],
    }


@router.post(
    "/v1/predict",
    summary="Classify images",
    response_model=PredictResponse,
    responses=all_errors(),
    openapi_extra=_body(),
    dependencies=[requires(Scope.PREDICT)],
)
async def predict(request: Request, parts: PartsOfApp, caller: CallerOfRequest) -> Response:
    """Send a form with one or more files named `image`, or one image as the body with the fields in the query
    string: `curl --data-binary @cat.jpg -H 'Content-Type: image/jpeg' '…/v1/predict?labels=cat&labels=dog'`."""
    service, metrics = parts.service, parts.metrics
    space, status = "unknown", 500
    try:
        uploads, fields = await read_prediction(request, service.options)
        caller.spend_images(len(uploads))
        query = service.query(fields)
        space = query.label_space
        response = await service.predict(uploads, query, fields.version)
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
