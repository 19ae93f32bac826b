"""How OpenAPI describes the errors of a route."""

from __future__ import annotations

from typing import Any

from serving.error_handlers import PROBLEM
from serving.schemas import Problem

_DESCRIPTIONS = {
    401: "No token, or one that is unknown, revoked or expired",
    403: "The token has another scope",
    404: "No such task or version",
    410: "The version is gone",
    413: "The body is too large",
    415: "The body is neither a form nor an image",
    422: "An image or a field that cannot be used; the message names it",
    429: "Overloaded, or more than the token allows: nothing was computed, retry after `Retry-After` seconds",
    503: "No version yet, or the store does not answer",
    504: "No answer in time",
}

ErrorResponses = dict[int | str, dict[str, Any]]


def all_errors() -> ErrorResponses:
    """`responses` of a route that can fail in every way."""
    return errors(*_DESCRIPTIONS)


def errors(*statuses: int) -> ErrorResponses:
    """`responses` of a route that fails with these statuses."""
    schema = {"$ref": f"#/components/schemas/{Problem.__name__}"}
    return {
        status: {"model": Problem, "description": _DESCRIPTIONS[status], "content": {PROBLEM: {"schema": schema}}}
        for status in statuses
    }
