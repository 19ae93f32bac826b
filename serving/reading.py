"""Reads the body of a prediction: a form with files, or a single image; never more bytes than the limit."""

from __future__ import annotations

from collections.abc import AsyncIterator

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from serving.errors import BodyTooLargeError, MediaTypeError, RequestError
from serving.images import Upload
from serving.options import ServeOptions
from serving.schemas import PredictFields

_MAX_PARTS = 10_000
_NAME_CHARACTERS = 200


async def read_prediction(request: Request, options: ServeOptions) -> tuple[list[Upload], PredictFields]:
    """Images and fields of `POST /v1/predict`.

    Raises `BodyTooLargeError`, `MediaTypeError`, `RequestError`.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        if request.query_params:
            raise RequestError("the fields of a form belong in the form: drop the query string")
        return await _form(request, options)
    if kind.startswith("image/"):
        body = b"".join([chunk async for chunk in _limited(request, options.max_body_bytes)])
        return [Upload("image", body)], PredictFields.read(request.query_params.multi_items())
    raise MediaTypeError(
        f"a body of type {kind or '(none)'!r} cannot be read: send multipart/form-data with files named `image`, or "
        "one image with `Content-Type: image/jpeg` (image/png, …) and the fields in the query string"
    )


async def _form(request: Request, options: ServeOptions) -> tuple[list[Upload], PredictFields]:
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
                    raise RequestError(f"more than {options.max_images} images: split them over several requests")
                called = (value.filename or f"image-{len(uploads) + 1}")[:_NAME_CHARACTERS]
                uploads.append(Upload(called, await value.read()))
            elif name == "image":
                raise RequestError("image is text: it must be a file (with curl, `-F image=@photo.jpg`)")
            else:
                fields.append((name, value))
    if not uploads:
        raise RequestError("the form has no file named `image`")
    return uploads, PredictFields.read(fields)


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
