"""The bytes of a body, out of gzip where it is in gzip, counted while they come."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator

from starlette.requests import Request

from serving.errors import BodyTooLargeError, EncodingError, RequestError

_GZIP = 16 + zlib.MAX_WBITS
_PIECE_BYTES = 1 << 20
_FEWER = "send fewer or smaller images"


async def body_of(request: Request, limit: int, *, advice: str = _FEWER) -> bytes:
    """The whole body. Raises what `chunks_of` raises."""
    return b"".join([chunk async for chunk in chunks_of(request, limit, advice=advice)])


async def chunks_of(request: Request, limit: int, *, advice: str = _FEWER) -> AsyncIterator[bytes]:
    """The body as it comes, decompressed. The limit, in bytes, holds for what is sent and for what that becomes.

    Args:
        advice: what somebody with too large a body is told to do.
    Raises `BodyTooLargeError`, `EncodingError` for an encoding other than gzip, `RequestError` for damaged gzip.
    """
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > limit:
        raise BodyTooLargeError(f"the body has {announced} bytes, the limit is {limit}: {advice}")
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding in ("gzip", "x-gzip"):
        chunks = _inflated(_limited(request.stream(), limit, advice))
    elif encoding in ("identity", ""):
        chunks = request.stream()
    else:
        raise EncodingError(f"a body in Content-Encoding {encoding[:40]!r} cannot be read: send it in gzip, or plain")
    async for chunk in _limited(chunks, limit, advice):
        yield chunk


async def _limited(chunks: AsyncIterator[bytes], limit: int, advice: str) -> AsyncIterator[bytes]:
    total = 0
    async for chunk in chunks:
        total += len(chunk)
        if total > limit:
            raise BodyTooLargeError(f"the body has more than {limit} bytes: {advice}")
        yield chunk


async def _inflated(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Pieces of 1 MiB at most, so that a bomb is met by the limit and not by memory, and others have their turn."""
    inflater = zlib.decompressobj(_GZIP)
    try:
        async for chunk in chunks:
            while chunk:
                if inflater.eof:  # a further member follows: gzip files may be concatenated
                    inflater = zlib.decompressobj(_GZIP)
                yield inflater.decompress(chunk, _PIECE_BYTES)
                chunk = inflater.unused_data if inflater.eof else inflater.unconsumed_tail
                await asyncio.sleep(0)
        yield inflater.flush()  # the few bytes that a full piece may have left inside
    except zlib.error as error:
        raise RequestError(f"the body says that it is in gzip, and is not: {error}") from None
    if not inflater.eof:
        raise RequestError("the body says that it is in gzip, and ends too early")
