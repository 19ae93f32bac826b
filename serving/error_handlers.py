"""Every error in one shape, `{"error": {"type", "message"}}`, and nothing in it that is the operator's alone."""

from __future__ import annotations

import logging
from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from fusion.errors import ConduError, StoreError
from serving.schemas import describe

logger = logging.getLogger(__name__)

_RETRY_AFTER_S = {429: "1", 503: "2"}


def add_error_handlers(app: FastAPI, store_url: str) -> None:
    """Answer errors of every kind. `store_url` is taken out of messages."""

    @app.exception_handler(ConduError)
    async def ours(request: Request, error: ConduError) -> JSONResponse:
        message = str(error)
        if isinstance(error, StoreError):  # its message names buckets and endpoints: for the operator, not for clients
            logger.warning("%s %s: %s: %s", request.method, request.url.path, type(error).__name__, error)
            message = "the object store did not provide what this request needs; the service's log has the reason"
        return _response(error.http_status, type(error).__name__, message.replace(store_url, "the store"))

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        return _response(422, "RequestError", describe(error.errors()))

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        kind = HTTPStatus(error.status_code).phrase.title().replace(" ", "")
        message = f"{request.method} {request.url.path}: {error.detail}. See /docs for the API"
        return _response(error.status_code, kind, message)

    @app.exception_handler(Exception)
    async def broken(request: Request, error: Exception) -> JSONResponse:
        # the traceback goes to the log (Starlette raises the error again after this answer), never to the client
        message = f"{request.method} {request.url.path} failed inside the service; its log has the reason"
        return _response(500, "InternalServerError", message)


def _response(status: int, kind: str, message: str) -> JSONResponse:
    headers = {"Retry-After": _RETRY_AFTER_S[status]} if status in _RETRY_AFTER_S else None
    return JSONResponse({"error": {"type": kind, "message": message}}, status_code=status, headers=headers)
