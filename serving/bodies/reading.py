"""Images and fields of a request, whichever kind of body they come in."""

from __future__ import annotations

import asyncio
from typing import TypeVar

from starlette.requests import Request

from serving.bodies.form_body import read_form
from serving.bodies.json_body import read_json
from serving.bodies.stream import body_of
from serving.errors import MediaTypeError, RequestError
from serving.fetching.fetcher import Fetcher
from serving.images import Upload
from serving.options import ServeOptions
from serving.schemas import Fields

Kind = TypeVar("Kind", bound=Fields)


async def read_request(
    request: Request, options: ServeOptions, kind: type[Kind], fetcher: Fetcher, *, images_required: bool = True
) -> tuple[list[Upload], Kind]:
    """Images, fetched by `fetcher` where a body says where they are, and fields.

    Raises `BodyTooLargeError`, `EncodingError`, `MediaTypeError`, `RequestError`, `RequestTimeoutError`.
    """
    media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media in ("multipart/form-data", "application/json") and request.query_params:
        raise RequestError("the fields of a form or of JSON belong in the body: drop the query string")
    if media == "multipart/form-data":
        uploads, items = await read_form(request, options)
        if images_required and not uploads:
            raise RequestError("the form has no file named `image`")
        return uploads, kind.read(items)
    if media == "application/json":
        body = await body_of(request, options.max_body_bytes)
        # in a thread: megabytes of base64 would hold up everybody else's requests
        images, values = await asyncio.to_thread(read_json, body, options)
        if images_required and not images:
            raise RequestError('there is no image: give "images": [{"b64": "…"}]')
        fields = kind.of_json(values)  # before anything is fetched for them
        return await fetcher.fetched(images), fields
    if media.startswith("image/"):
        body = await body_of(request, options.max_body_bytes)
        return [Upload("image", body)], kind.read(request.query_params.multi_items())
    raise MediaTypeError(
        f"a body of type {media or '(none)'!r} cannot be read: send multipart/form-data with files named `image`, "
        "JSON, or one image with `Content-Type: image/jpeg` (image/png, …) and its fields in the query string"
    )
