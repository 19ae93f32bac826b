"""A form with files named `image`, and fields."""

from __future__ import annotations

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from serving.bodies.stream import chunks_of
from serving.errors import RequestError
from serving.images import Upload
from serving.options import ServeOptions

NAME_CHARACTERS = 200
"""What is kept of an image's name."""
_MAX_PARTS = 10_000


async def read_form(request: Request, options: ServeOptions) -> tuple[list[Upload], list[tuple[str, str]]]:
    """Images and fields, each in their order. Raises `RequestError` and what `chunks_of` raises."""
    parser = MultiPartParser(
        request.headers,
        chunks_of(request, options.max_body_bytes),  # type: ignore[arg-type]
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
                    raise RequestError(too_many(options))
                called = (value.filename or f"image-{len(uploads) + 1}")[:NAME_CHARACTERS]
                uploads.append(Upload(called, await value.read()))
            elif name == "image":
                raise RequestError("image is text: it must be a file (with curl, `-F image=@photo.jpg`)")
            else:
                fields.append((name, value))
    return uploads, fields


def too_many(options: ServeOptions) -> str:
    """What is wrong with a request of more images than `max_images`."""
    return f"more than {options.max_images} images: split them over several requests"


class _closing:
    def __init__(self, items: list[tuple[str, UploadFile | str]]) -> None:
        self._files = [value for _, value in items if isinstance(value, UploadFile)]

    async def __aenter__(self) -> None: ...

    async def __aexit__(self, *_: object) -> None:
        for file in self._files:
            await file.close()
