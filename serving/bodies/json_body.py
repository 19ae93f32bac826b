"""A JSON body: an object whose member `images` holds images in base64 or by URL, and whose other members are fields."""

from __future__ import annotations

import base64
import json
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from serving.bodies.form_body import NAME_CHARACTERS, too_many
from serving.errors import RequestError
from serving.fetching.fetcher import Remote
from serving.images import Upload
from serving.options import ServeOptions
from serving.schemas import mistakes


class JsonImage(BaseModel):
    """An image in a JSON body: `b64`, or `url`."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    name: str | None = None
    """What answers call it. Default: `image-1`, `image-2`, …"""
    b64: str | None = None
    """The file in base64."""
    url: str | None = None
    """A `data:` URL, such as `data:image/png;base64,…`; or where an image is, if the service fetches from there
    (`serve.fetch`)."""


def read_json(body: bytes, options: ServeOptions) -> tuple[list[Upload | Remote], dict[str, Any]]:
    """Images, those that are elsewhere not fetched yet, and the other members. Raises `RequestError`."""
    try:
        values = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"the body is not valid JSON: {error}") from None
    if not isinstance(values, dict):
        raise RequestError('the body must be a JSON object, such as {"images": [{"b64": "…"}], "task": "…"}')
    given = values.pop("images", [])
    if not isinstance(given, list):
        raise RequestError('images must be a list, such as [{"b64": "…"}]')
    if len(given) > options.max_images:
        raise RequestError(too_many(options))
    return [_image(number, image) for number, image in enumerate(given, 1)], values


def _image(number: int, value: Any) -> Upload | Remote:
    where = f"images.{number - 1}"
    try:
        image = JsonImage.model_validate(value, strict=True)
    except ValidationError as error:
        raise RequestError.of(
            tuple((f"{where}.{at}".rstrip("."), what) for at, what in mistakes(error.errors()))
        ) from None
    if (image.b64 is None) == (image.url is None):
        raise RequestError(f'{where} needs either "b64" or "url"')
    name = (image.name or f"image-{number}")[:NAME_CHARACTERS]
    encoded = image.b64
    if image.url is not None:
        scheme, _, rest = image.url.partition(":")
        if scheme.lower() != "data":
            return Remote(where, name, image.url)
        kind, comma, encoded = rest.partition(",")
        if not comma or not kind.lower().endswith(";base64"):
            raise RequestError(f"{where}: a data URL must be in base64: data:image/png;base64,…")
    try:
        body = base64.b64decode("".join((encoded or "").split()), validate=True)
    except ValueError as error:
        raise RequestError(f"{where} is not valid base64: {error}") from None
    return Upload(name, body)
