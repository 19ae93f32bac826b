"""The HTTP face of a service: routes, and every error in one shape, `{"error": {"type", "message"}}`."""

from __future__ import annotations

import asyncio
import logging
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.exceptions import HTTPException

from fusion.errors import ConduError, StoreError
from fusion.store import Store
from serving.catalogue import PAGE, Catalogue, tasks_of
from serving.docs_page import DOCS_PAGE
from serving.metrics import Metrics
from serving.reading import read_prediction
from serving.schemas import (
    ErrorResponse,
    PredictFields,
    PredictResponse,
    ReadyResponse,
    TasksResponse,
    VersionsResponse,
    describe,
)
from serving.service import Service

logger = logging.getLogger(__name__)

_DESCRIPTION = """One CLIP that keeps learning: one expert for each task, one version of all of them at a time.

Three label spaces. **task**: you name the task; its expert answers over its own classes. **labels**: you give class
names; the base and the experts nearest to the image answer over them. **seen**: you give nothing; the classes of the
nearest tasks compete, and the answer names task and class. Every answer names the version that it comes from."""

_RETRY = {429: "1", 503: "2"}
_ERRORS: dict[int | str, dict[str, Any]] = {
    404: {"model": ErrorResponse, "description": "No such task or version"},
    410: {"model": ErrorResponse, "description": "that version is gone"},
    413: {"model": ErrorResponse, "description": "The body is too large"},
    415: {"model": ErrorResponse, "description": "The body is neither a form nor an image"},
    422: {"model": ErrorResponse, "description": "An image or a field that can't be used; the message names it"},
    429: {"model": ErrorResponse, "description": "Overloaded: nothing was computed, retry after `Retry-After` seconds"},
    503: {"model": ErrorResponse, "description": "No version yet, or the store does not answer"},
    504: {"model": ErrorResponse, "description": "No answer in time"},
}


def build_http(service: Service, store: Store, metrics: Metrics) -> FastAPI:
    """The application of one ingress replica."""
    # FastAPI's own pages of documentation fetch their scripts from elsewhere: /docs below is self-contained
    app = FastAPI(title="condu", version="1", description=_DESCRIPTION, docs_url=None, redoc_url=None)
    catalogue = Catalogue(store)
    _answer_errors(app, store.url)

    @app.post(
        "/v1/predict",
        tags=["predict"],
        summary="Classify images",
        response_model=PredictResponse,
        responses=_ERRORS,
        openapi_extra=_predict_body(),
    )
    async def predict(request: Request) -> Any:
        """Send a form with one or more files named `image`, or one image as the body with the fields in the query
        string: `curl --data-binary @cat.jpg -H 'Content-Type: image/jpeg' '…/v1/predict?labels=cat&labels=dog'`."""
        space, status = "unknown", 500
        try:
            uploads, fields = await read_prediction(request, service.options)
            query = service.query(fields)
            space = query.label_space
            response = await service.predict(uploads, query, fields.version)
            status = 200
            metrics.predicted(space, response.seconds, len(uploads))
            return response
        except ConduError as error:
            status = error.http_status
            raise
        except asyncio.CancelledError:
            status = 499  # the client went away
            raise
        finally:
            metrics.requested(space, status)

    @app.get("/v1/tasks", tags=["catalogue"], summary="Tasks of a version", responses=_some(404, 410, 503))
    async def tasks(
        version: Annotated[int | None, Query(ge=1, description="Absent: the version that answers now")] = None,
    ) -> TasksResponse:
        return tasks_of(await service.watcher.view(version))

    @app.get("/v1/versions", tags=["catalogue"], summary=f"Versions, newest first, {PAGE} a page", responses=_some(503))
    async def versions(
        before: Annotated[int | None, Query(ge=1, description="Only versions below this number")] = None,
    ) -> VersionsResponse:
        current = service.watcher.current
        return await asyncio.to_thread(catalogue.page, before=before, serving=current.version if current else None)

    @app.get("/healthz", tags=["operation"], summary="Is the process alive?")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get(
        "/readyz",
        tags=["operation"],
        summary="Is a version loaded and warm? 503 until then",
        response_model=ReadyResponse,
        responses={503: {"model": ReadyResponse, "description": "Not yet"}},
    )
    async def readyz() -> JSONResponse:
        view = service.watcher.current
        body = ReadyResponse(
            ready=service.ready,
            version=view.version if view else None,
            tasks=len(view.tasks) if view else 0,
            models=service.models_state,
            problem=service.watcher.problem,
        )
        return JSONResponse(body.model_dump(), status_code=200 if service.ready else 503)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(DOCS_PAGE)

    return app


def error_response(status: int, kind: str, message: str) -> JSONResponse:
    headers = {"Retry-After": _RETRY[status]} if status in _RETRY else None
    return JSONResponse({"error": {"type": kind, "message": message}}, status_code=status, headers=headers)


def _answer_errors(app: FastAPI, store_url: str) -> None:
    @app.exception_handler(ConduError)
    async def ours(request: Request, error: ConduError) -> JSONResponse:
        message = str(error)
        if isinstance(error, StoreError):  # its message names buckets and endpoints: for the operator, not for clients
            logger.warning("%s %s: %s: %s", request.method, request.url.path, type(error).__name__, error)
            message = "the object store has not given what this needs; the service's log has the reason"
        return error_response(error.http_status, type(error).__name__, message.replace(store_url, "the store"))

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        return error_response(422, "RequestError", describe(error.errors()))

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        kind = HTTPStatus(error.status_code).phrase.title().replace(" ", "")
        message = f"{request.method} {request.url.path}: {error.detail}. /docs lists what there is"
        return error_response(error.status_code, kind, message)

    @app.exception_handler(Exception)
    async def broken(request: Request, error: Exception) -> JSONResponse:
        # the traceback goes to the log (Starlette raises the error again after this answer), never to the client
        message = f"{request.method} {request.url.path} failed inside the service; its log has the reason"
        return error_response(500, "InternalServerError", message)


def _some(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: _ERRORS[status] for status in (*statuses, 422)}


def _predict_body() -> dict[str, Any]:
    """OpenAPI of a body that FastAPI can't describe: a form, or an image with the same fields as parameters."""
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
