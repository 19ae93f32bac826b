"""Every error as a problem document (RFC 9457), and nothing in it that is the operator's alone."""

from __future__ import annotations

import logging
import re
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.routing import Match

from fusion.errors import ConduError, StoreError
from serving.errors import RequestError
from serving.request_id import HEADER, request_id
from serving.schemas import mistakes

logger = logging.getLogger(__name__)

PROBLEM = "application/problem+json"
_RETRY_AFTER_S = {429: "1", 503: "2"}


def add_error_handlers(app: FastAPI, store_url: str) -> None:
    """Answer errors of every kind. `store_url` is taken out of messages."""

    @app.exception_handler(ConduError)
    async def ours(request: Request, error: ConduError) -> JSONResponse:
        detail = str(error)
        if isinstance(error, StoreError):  # its message names buckets and endpoints: for the operator, not for clients
            _log(logging.WARNING, request, f"{type(error).__name__}: {error}")
            detail = "the object store did not provide what this request needs; the service's log has the reason"
        detail = detail.replace(store_url, "the store")
        return _problem(request, error.http_status, type(error).__name__, detail, error.errors, error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        wrong = RequestError.of(mistakes(error.errors()))
        return _problem(request, 422, "RequestError", str(wrong), wrong.errors)

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        headers = dict(error.headers or {})
        if error.status_code == 405:
            headers["Allow"] = ", ".join(_allowed(app, request))
            if request.method == "OPTIONS":
                return Response(status_code=204, headers=headers)
        kind = HTTPStatus(error.status_code).phrase.title().replace(" ", "")
        detail = f"{request.method} {request.url.path}: {error.detail}. See /docs for the API"
        return _problem(request, error.status_code, kind, detail, headers=headers)

    @app.exception_handler(Exception)
    async def broken(request: Request, error: Exception) -> JSONResponse:
        # the traceback goes to the log (Starlette raises the error again after this answer), never to the client
        _log(logging.ERROR, request, f"{type(error).__name__}: {error}")
        detail = f"{request.method} {request.url.path} failed inside the service; its log has the reason"
        # this answer leaves outside of all middleware
        named = {} if HEADER in request.headers else {HEADER: request_id(request.scope)}
        return _problem(request, 500, "InternalServerError", detail, headers=named)


def _problem(
    request: Request,
    status: int,
    kind: str,
    detail: str,
    errors: Any = (),
    headers: Any = None,
) -> JSONResponse:
    body: dict[str, Any] = {
        "type": f"urn:condu:{kind}",
        "title": _in_words(kind),
        "status": status,
        "detail": detail,
        "instance": request_id(request.scope),
    }
    if errors:
        body["errors"] = [{"field": field, "detail": what} for field, what in errors]
    more = {"Retry-After": _RETRY_AFTER_S[status]} if status in _RETRY_AFTER_S else {}
    return JSONResponse(body, status_code=status, headers={**more, **(headers or {})}, media_type=PROBLEM)


def _allowed(app: FastAPI, request: Request) -> list[str]:
    """The methods that the request's path takes: Starlette's own header has those of one route alone."""

    def takes(method: str) -> bool:
        return any(route.matches({**request.scope, "method": method})[0] == Match.FULL for route in app.routes)

    return [method for method in ("DELETE", "GET", "HEAD", "OPTIONS", "POST") if method == "OPTIONS" or takes(method)]


def _in_words(kind: str) -> str:
    """`UnknownTaskError` as "Unknown task"."""
    return " ".join(re.findall(r"[A-Z][a-z]*", kind.removesuffix("Error"))).capitalize()


def _log(level: int, request: Request, what: str) -> None:
    logger.log(level, "%s %s request=%s %s", request.method, request.url.path, request_id(request.scope), what)
