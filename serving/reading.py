"""Reads the body of a request: a form with files, JSON, or a single image; never more bytes than the limit."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from serving.errors import BodyTooLargeError, MediaTypeError, RequestError
from serving.images import Upload
from serving.options import ServeOptions
from serving.schemas import Fields, mistakes

_MAX_PARTS = 10_000
_NAME_CHARACTERS = 200
_SCHEME_CHARACTERS = 20
Kind = TypeVar("Kind", bound=Fields)


class JsonImage(BaseModel):
    """An image in a JSON body: `b64`, or `url`."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    name: str | None = None
    """What answers call it. Default: `image-1`, `image-2`, …"""
    b64: str | None = None
    """The file in base64."""
    url: str | None = None
    """A `data:` URL, such as `data:image/png;base64,…`. No other is fetched."""


async def read_request(
    request: Request, options: ServeOptions, kind: type[Kind], *, images_required: bool = True
) -> tuple[list[Upload], Kind]:
    """Images and fields of a request.

    Raises `BodyTooLargeError`, `MediaTypeError`, `RequestError`.
    """
    media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media in ("multipart/form-data", "application/json") and request.query_params:
        raise RequestError("the fields of a form or of JSON belong in the body: drop the query string")
    if media == "multipart/form-data":
        uploads, items = await _form(request, options)
        if images_required and not uploads:
            raise RequestError("the form has no file named `image`")
        return uploads, kind.read(items)
    if media == "application/json":
        # in a thread: megabytes of base64 would hold up everybody else's requests
        uploads, values = await asyncio.to_thread(_json, await _whole(request, options), options)
        if images_required and not uploads:
            raise RequestError('there is no image: give "images": [{"b64": "…"}]')
        return uploads, kind.of_json(values)
    if media.startswith("image/"):
        return [Upload("image", await _whole(request, options))], kind.read(request.query_params.multi_items())
    raise MediaTypeError(
        f"a body of type {media or '(none)'!r} cannot be read: send multipart/form-data with files named `image`, "
        "JSON, or one image with `Content-Type: image/jpeg` (image/png, …) and its fields in the query string"
    )


async def _whole(request: Request, options: ServeOptions) -> bytes:
    return b"".join([chunk async for chunk in _limited(request, options.max_body_bytes)])


def _json(body: bytes, options: ServeOptions) -> tuple[list[Upload], dict[str, Any]]:
    """Images, and the other members."""
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
        raise RequestError(_too_many(options))
    return [_upload(number, image) for number, image in enumerate(given, 1)], values


def _upload(number: int, value: Any) -> Upload:
    where = f"images.{number - 1}"
    try:
        image = JsonImage.model_validate(value, strict=True)
    except ValidationError as error:
        raise RequestError.of(
            tuple((f"{where}.{at}".rstrip("."), what) for at, what in mistakes(error.errors()))
        ) from None
    if (image.b64 is None) == (image.url is None):
        raise RequestError(f'{where} needs either "b64" or "url"')
    encoded = image.b64
    if image.url is not None:
        scheme, _, rest = image.url.partition(":")
        if scheme.lower() != "data":
            raise RequestError(f"{where}: a URL of {_short(scheme)!r} is not fetched: send the image itself, in base64")
        kind, comma, encoded = rest.partition(",")
        if not comma or not kind.lower().endswith(";base64"):
            raise RequestError(f"{where}: a data URL must be in base64: data:image/png;base64,…")
    try:
        body = base64.b64decode("".join((encoded or "").split()), validate=True)
    except ValueError as error:
        raise RequestError(f"{where} is not valid base64: {error}") from None
    return Upload((image.name or f"image-{number}")[:_NAME_CHARACTERS], body)


def _too_many(options: ServeOptions) -> str:
    return f"more than {options.max_images} images: split them over several requests"


def _short(text: str) -> str:
    return text if len(text) <= _SCHEME_CHARACTERS else text[:_SCHEME_CHARACTERS] + "…"


async def _form(request: Request, options: ServeOptions) -> tuple[list[Upload], list[tuple[str, str]]]:
    parser = MultiPartParser(
        request.headers,
        _limited(request, options.max_body_bytes),  # type: ignore[arg-type]
        max_files=_MAX_PARTS,
        max_fields=_MAX_PARTS,
    )
    parser.spool_max_size = options.max_body_bytes  # the body has a limit, so it need not go to disk
    try:
        form = await parser.parse()
    except (MultiPartException, KeyError, UnicodeDecodeError) as error:
        message = getattr(error, "message", None) or "no boundary, or names that are not UTF-8"
        raise RequestError(f"the form cannot be read: {message}") from None
    async with _closing(form.multi_items()):
        uploads: list[Upload] = []
        fields: list[tuple[str, str]] = []
        for name, value in form.multi_items():
            if isinstance(value, UploadFile):
                if name != "image":
                    raise RequestError(f"a file is in field {name!r}: files go into fields named `image`")
                if len(uploads) == options.max_images:
                    raise RequestError(_too_many(options))
                called = (value.filename or f"image-{len(uploads) + 1}")[:_NAME_CHARACTERS]
                uploads.append(Upload(called, await value.read()))
            elif name == "image":
                raise RequestError("image is text: it must be a file (with curl, `-F image=@photo.jpg`)")
            else:
                fields.append((name, value))
    return uploads, fields


async def _limited(request: Request, limit: int) -> AsyncIterator[bytes]:
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > limit:
        raise BodyTooLargeError(f"the body has {announced} bytes, the limit is {limit}: send fewer or smaller images")
    total = 0
    async for chunk in request.stream():
        total += len(chunk)
        if total > limit:
            raise BodyTooLargeError(f"the body has more than {limit} bytes: send fewer or smaller images")
        yield chunk


class _closing:
    def __init__(self, items: list[tuple[str, UploadFile | str]]) -> None:
        self._files = [value for _, value in items if isinstance(value, UploadFile)]

    async def __aenter__(self) -> None: ...

    async def __aexit__(self, *_: object) -> None:
        for file in self._files:
            await file.close()
