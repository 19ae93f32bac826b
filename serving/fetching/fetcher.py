"""Fetches images from where requests say that they are, as far as `serve.fetch` allows it.

A name is resolved once, every address is checked, and the connection goes to a checked one: a name that points inside
the network, or turns there between check and connection, leads nowhere. Redirects are not followed, proxies of the
environment are not used, and a connection serves one image, so that none is shared between names.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass

import httpx

from fusion.errors import BlobNotFoundError, StoreError
from fusion.store import S3Options
from serving.errors import BodyTooLargeError, RequestError, RequestTimeoutError
from serving.fetching.addresses import addresses_of, is_public
from serving.fetching.allowed import PORTS, Place, Target, places
from serving.images import Upload
from serving.options import ServiceOptions

logger = logging.getLogger(__name__)

_AT_ONCE = 8
_SHOWN = 200


@dataclass(frozen=True)
class Remote:
    """An image that is elsewhere: its place in the request, its name in the answer, and its URL."""

    where: str
    name: str
    url: str


class Fetcher:
    """Fetches what requests name. For one event loop.

    Args:
        fetch: the allow-list.
        s3: how to reach S3.
        max_bytes: of all images of a request together.
        timeout_s: for all images of a request together.
        resolve: a host's addresses, for a port.
        public: whether an address may be what a name stands for.
        trust: the authorities of HTTPS; None: those of certifi.
    Raises:
        ConfigError: an entry of the allow-list is none.
    """

    def __init__(
        self,
        fetch: Sequence[str] = (),
        *,
        s3: S3Options | None = None,
        max_bytes: int,
        timeout_s: float,
        resolve: Callable[[str, int], Awaitable[list[str]]] = addresses_of,
        public: Callable[[str], bool] = is_public,
        trust: ssl.SSLContext | None = None,
    ) -> None:
        self._places = places(fetch)
        self._s3 = s3
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s
        self._resolve = resolve
        self._public = public
        self._trust = trust
        self._http: httpx.AsyncClient | None = None
        self._turns = asyncio.Semaphore(_AT_ONCE)

    @classmethod
    def of(cls, options: ServiceOptions) -> Fetcher:
        """That of a service."""
        return cls(
            options.fetch,
            s3=options.address.options,
            max_bytes=options.max_body_bytes,
            timeout_s=options.request_timeout_s,
        )

    async def fetched(self, images: Sequence[Upload | Remote]) -> list[Upload]:
        """The images in their order, those fetched that are elsewhere.

        Raises `RequestError` that lists every image that is not allowed or not there, `BodyTooLargeError`,
        `RequestTimeoutError`.
        """
        remote = [image for image in images if isinstance(image, Remote)]
        if not remote:
            return [image for image in images if isinstance(image, Upload)]
        allowed = self._allowed(remote)
        budget = _Budget(self._max_bytes)
        tasks = [asyncio.ensure_future(self._one(*one, budget)) for one in allowed]
        try:
            async with asyncio.timeout(self._timeout_s):
                found = await asyncio.gather(*tasks, return_exceptions=True)
        except TimeoutError:
            raise RequestTimeoutError(
                f"the images were not fetched within {self._timeout_s:g} s: send them in the request"
            ) from None
        finally:
            for task in tasks:
                task.cancel()
        mistakes: list[tuple[str, str]] = []
        for one in found:
            if isinstance(one, RequestError):
                mistakes += one.errors
            elif isinstance(one, BaseException):
                raise one
        if mistakes:
            raise RequestError.of(tuple(mistakes))
        bodies = iter(found)
        return [Upload(i.name, next(bodies)) if isinstance(i, Remote) else i for i in images]  # type: ignore[arg-type]

    def _allowed(self, remote: Sequence[Remote]) -> list[tuple[Remote, Target, Place]]:
        found, refused = [], []
        for image in remote:
            shown = image.url if len(image.url) <= _SHOWN else image.url[:_SHOWN] + "…"
            try:
                target = Target.of(image.url)
            except ValueError as error:
                refused.append((image.where, f"{shown!r} is not fetched: {error}"))
                continue
            place = next((place for place in self._places if place.has(target)), None)
            if place is None:
                allowed = "no URL" if not self._places else "only what its operator allows (serve.fetch)"
                refused.append(
                    (image.where, f"{shown!r} is not fetched: this service fetches {allowed}. Send the image")
                )
            else:
                found.append((image, target, place))
        if refused:
            raise RequestError.of(tuple(refused))
        return found

    async def _one(self, image: Remote, target: Target, place: Place, budget: _Budget) -> bytes:
        async with self._turns:
            try:
                if target.scheme == "s3":
                    return await asyncio.to_thread(self._object, target, place, budget)
                chunks = []
                async with aclosing(self._download(target, place)) as coming:
                    async for chunk in coming:
                        budget.spend(len(chunk))
                        chunks.append(chunk)
                return b"".join(chunks)
            except _Refusal as refusal:
                why = f"{image.url[:_SHOWN]!r} cannot be fetched: {refusal}"
                raise RequestError.of(((image.where, why),)) from None

    def _object(self, target: Target, place: Place, budget: _Budget) -> bytes:
        from fusion.store.s3_folder import S3Folder  # boto3 takes long to import

        folder = S3Folder(f"s3://{target.host}{place.path}".rstrip("/"), options=self._s3)
        chunks = []
        try:
            for chunk in folder.pieces(target.path.removeprefix(place.path)):
                budget.spend(len(chunk))
                chunks.append(chunk)
        except BlobNotFoundError:
            raise _Refusal("there is no such object") from None
        except StoreError as error:
            logger.warning("fetching from s3://%s: %s", target.host, error)
            raise _Refusal("S3 did not provide it; the service's log has the reason") from None
        return b"".join(chunks)

    async def _download(self, target: Target, place: Place) -> AsyncGenerator[bytes, None]:
        try:
            addresses = await self._resolve(target.host, target.port)
        except OSError:
            raise _Refusal(f"the host {target.host} is not known") from None
        # an address that the operator spelled out is meant; a name that leads inside is a trick or a mistake
        if not place.literal and not all(self._public(address) for address in addresses):
            raise _Refusal(f"{target.host} is not on the public internet")
        reason = ""
        for address in addresses:
            try:
                async with aclosing(self._response(target, address)) as chunks:
                    async for chunk in chunks:
                        yield chunk
                return
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                reason = type(error).__name__
            except httpx.HTTPError as error:
                raise _Refusal(f"the connection broke ({type(error).__name__})") from None
        raise _Refusal(f"{target.host} does not answer ({reason})")

    async def _response(self, target: Target, address: str) -> AsyncGenerator[bytes, None]:
        if self._http is None:  # reading the certificate authorities takes 40 ms
            self._http = httpx.AsyncClient(
                verify=self._trust or True,
                trust_env=False,
                timeout=self._timeout_s,
                limits=httpx.Limits(max_keepalive_connections=0),
            )
        request = self._http.build_request(
            "GET",
            f"{target.scheme}://{_bracketed(address)}:{target.port}{target.path}"
            + (f"?{target.query}" if target.query else ""),
            headers={"Host": _host_header(target), "Accept": "image/*", "Accept-Encoding": "identity"},
            extensions={"sni_hostname": target.host},
        )
        answer = await self._http.send(request, stream=True)
        try:
            if answer.status_code != 200:
                kind = "a redirect, which is not followed" if answer.is_redirect else "no image"
                raise _Refusal(f"the answer is {answer.status_code}, {kind}")
            async for chunk in answer.aiter_raw():
                yield chunk
        finally:
            await answer.aclose()


class _Budget:
    """Bytes that a request's images may still take. Raises `BodyTooLargeError` when they are spent."""

    def __init__(self, num_bytes: int) -> None:
        self._limit = self._left = num_bytes

    def spend(self, num_bytes: int) -> None:
        self._left -= num_bytes
        if self._left < 0:
            raise BodyTooLargeError(
                f"the images at these URLs have more than {self._limit} bytes: send fewer or smaller images"
            )


class _Refusal(Exception):
    """Why an image cannot be fetched."""


def _bracketed(address: str) -> str:
    return f"[{address}]" if ipaddress.ip_address(address).version == 6 else address


def _host_header(target: Target) -> str:
    host = _bracketed(target.host) if target.literal else target.host
    return host if target.port == PORTS[target.scheme] else f"{host}:{target.port}"
