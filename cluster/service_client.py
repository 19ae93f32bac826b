"""A client of the service: images in, answers out, one clear error for every failure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import httpx

from fusion.errors import ConduError

_TIMEOUT_S = 60.0


class ServiceError(ConduError):
    """The service did not answer, or refused."""


def predict_over_http(
    server: str,
    images: Sequence[tuple[str, bytes]],
    *,
    task: str | None = None,
    labels: Sequence[str] = (),
    templates: Sequence[str] = (),
    version: int | None = None,
    top_k: int | None = None,
    abstain: float | None = None,
) -> dict[str, Any]:
    """`POST /v1/predict` with named, encoded images. Raises `ServiceError` with the service's message."""
    fields: dict[str, Any] = {}
    if task is not None:
        fields["task"] = task
    if labels:
        fields["labels"] = list(labels)
    if templates:
        fields["templates"] = list(templates)
    if version is not None:
        fields["version"] = str(version)
    if top_k is not None:
        fields["top_k"] = str(top_k)
    if abstain is not None:
        fields["abstain"] = str(abstain)
    files = [("image", (name, data, "application/octet-stream")) for name, data in images]
    try:
        response = httpx.post(f"{server.rstrip('/')}/v1/predict", data=fields, files=files, timeout=_TIMEOUT_S)
        answer: dict[str, Any] = response.json()
    except httpx.HTTPError as error:
        raise ServiceError(f"{server} does not answer ({error}): start it with `condu serve CONFIG`") from error
    except ValueError as error:
        raise ServiceError(
            f"{server} is not a condu service: it answered {response.status_code} without JSON"
        ) from error
    if response.status_code != 200:
        message = answer.get("detail", answer)
        raise ServiceError(f"{server} refused ({response.status_code}): {message}")
    return answer
