"""`Client` and `AsyncClient`: the same talks, one with threads and one with asyncio."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from types import TracebackType
from typing import Any, TypeVar, Unpack
from urllib.parse import quote
from urllib.request import getproxies

import httpx

from fusion.errors import ConfigError
from serving.client.embeddings import Embeddings, Words
from serving.client.errors import ServiceError
from serving.client.images import Image, NamedImage, named, read_all
from serving.client.talk import Answer, Call, Pause, Question, Talk, Talker
from serving.schemas import EditResponse, PredictResponse, ReadyResponse, TasksResponse, VersionsResponse

Result = TypeVar("Result")

DEFAULT_SERVER = "http://127.0.0.1:8000"
TOKEN_VARIABLE = "CONDU_TOKEN"


class Client:
    """A client of one service. May be shared between threads; close it, or use it as a context manager.

    Every call repeats its request after 408, 429, 502, 503, 504 and after a lost connection or replica: it waits as
    long as the service asks, else for a growing random time, and gives up after `patience_s`. A service that has never
    answered is not waited for. What fails raises `ServiceError`.

    Args:
        server: the service's URL.
        token: sent as `Authorization: Bearer`. None: `$CONDU_TOKEN`, if it is set. Use HTTPS beyond this machine.
        timeout_s: of one attempt.
        patience_s: no attempt starts later than this after the first one; 0: there is one.
        transport: instead of httpx's own, for tests and special networks.
    """

    def __init__(
        self,
        server: str = DEFAULT_SERVER,
        *,
        token: str | None = None,
        timeout_s: float = 60.0,
        patience_s: float = 60.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._talker = Talker(server, patience_s)
        self._http = httpx.Client(
            headers=_headers(token), timeout=timeout_s, verify=_needs_authorities(server), transport=transport
        )

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close its connections."""
        self._http.close()

    def predict(self, images: Iterable[Image], **question: Unpack[Question]) -> PredictResponse:
        """Classify a few images with one request. One that can't be decoded fails the request.

        With `views="many"` they are views of one object, and `predictions` has the one answer for it.
        """
        return self._run(self._talker.predict(read_all(named(images)), question))

    def predict_many(
        self, images: Iterable[Image], *, batch_size: int = 16, concurrency: int = 4, **question: Unpack[Question]
    ) -> Iterator[Answer]:
        """Classify any number of images, in batches, several at a time; yields an `Answer` for each, in their order.

        A bad image is an answer with a `problem` and ends nothing. All answers come from one version: that of the first
        batch, unless the question names one. Images are read when their turn comes: at most `concurrency` + 1 batches
        are in memory.
        """
        _one_by_one(question)
        stopped = threading.Event()
        with ThreadPoolExecutor(concurrency, thread_name_prefix="condu-client") as pool:
            waiting: deque[Future[list[Answer]]] = deque()
            try:
                for batch in _batches(images, batch_size):
                    if question.get("version") is None:
                        first = self._batch(batch, question, stopped)
                        question = _pinned(question, first)
                        yield from first
                        continue
                    if len(waiting) >= concurrency:
                        yield from waiting.popleft().result()
                    waiting.append(pool.submit(self._batch, batch, question, stopped))
                while waiting:
                    yield from waiting.popleft().result()
            finally:
                stopped.set()
                for future in waiting:
                    future.cancel()

    def embed(self, images: Iterable[Image] = (), **words: Unpack[Words]) -> Embeddings:
        """Embed images, texts or both with one request, by the base or by the expert of `task`."""
        return self._run(self._talker.embed(read_all(named(images)), words))

    def tasks(self, version: int | None = None) -> TasksResponse:
        """The tasks of a version; None: of the one being served."""
        return self._run(self._talker.ask(_tasks(version), TasksResponse))

    def versions(self, before: int | None = None) -> VersionsResponse:
        """A page of versions, newest first."""
        return self._run(self._talker.ask(_versions(before), VersionsResponse))

    def ready(self) -> ReadyResponse:
        """What `/readyz` says. While the service is not ready it waits like every call, then raises."""
        return self._run(self._talker.ask(Call("GET", "/readyz"), ReadyResponse))

    def rollback(self, to: int) -> EditResponse:
        """Publish the state of an old version as a new one. Takes a token with scope `admin`."""
        return self._run(self._talker.ask(_rollback(to), EditResponse))

    def remove_task(self, name: str) -> EditResponse:
        """Publish the newest version without a task. Takes a token with scope `admin`."""
        return self._run(self._talker.ask(_remove_task(name), EditResponse))

    def _batch(self, batch: list[NamedImage], question: Question, stopped: threading.Event) -> list[Answer]:
        def pause(seconds: float) -> None:
            if stopped.wait(seconds):
                raise ServiceError("the batch was stopped")

        return self._run(self._talker.answer(read_all(batch), question), pause)

    def _run(self, talk: Talk[Result], pause: Callable[[float], Any] | None = None) -> Result:
        reply: Any = None
        try:
            while True:
                step = talk.send(reply)
                reply = (pause or time.sleep)(step.seconds) if isinstance(step, Pause) else self._send(step)
        except StopIteration as end:
            result: Result = end.value
            return result

    def _send(self, call: Call) -> httpx.Response | httpx.TransportError:
        try:
            return self._http.request(call.method, self._talker.server + call.path, **_parts(call))
        except httpx.TransportError as error:
            return error
        except (httpx.InvalidURL, UnicodeError) as error:
            raise ServiceError(f"{self._talker.server!r} is not a URL of a service: {error}") from error


class AsyncClient:
    """`Client` for asyncio: the same arguments, methods and errors; use it as an async context manager."""

    def __init__(
        self,
        server: str = DEFAULT_SERVER,
        *,
        token: str | None = None,
        timeout_s: float = 60.0,
        patience_s: float = 60.0,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._talker = Talker(server, patience_s)
        self._http = httpx.AsyncClient(
            headers=_headers(token), timeout=timeout_s, verify=_needs_authorities(server), transport=transport
        )

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close its connections."""
        await self._http.aclose()

    async def predict(self, images: Iterable[Image], **question: Unpack[Question]) -> PredictResponse:
        """See `Client.predict`."""
        read = await asyncio.to_thread(read_all, list(named(images)))
        return await self._run(self._talker.predict(read, question))

    async def predict_many(
        self, images: Iterable[Image], *, batch_size: int = 16, concurrency: int = 4, **question: Unpack[Question]
    ) -> AsyncIterator[Answer]:
        """See `Client.predict_many`."""
        _one_by_one(question)
        waiting: deque[asyncio.Task[list[Answer]]] = deque()
        try:
            for batch in _batches(images, batch_size):
                if question.get("version") is None:
                    first = await self._batch(batch, question)
                    question = _pinned(question, first)
                    for answer in first:
                        yield answer
                    continue
                if len(waiting) >= concurrency:
                    for answer in await waiting.popleft():
                        yield answer
                waiting.append(asyncio.create_task(self._batch(batch, question)))
            while waiting:
                for answer in await waiting.popleft():
                    yield answer
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    async def embed(self, images: Iterable[Image] = (), **words: Unpack[Words]) -> Embeddings:
        """See `Client.embed`."""
        read = await asyncio.to_thread(read_all, list(named(images)))
        return await self._run(self._talker.embed(read, words))

    async def tasks(self, version: int | None = None) -> TasksResponse:
        """See `Client.tasks`."""
        return await self._run(self._talker.ask(_tasks(version), TasksResponse))

    async def versions(self, before: int | None = None) -> VersionsResponse:
        """See `Client.versions`."""
        return await self._run(self._talker.ask(_versions(before), VersionsResponse))

    async def ready(self) -> ReadyResponse:
        """See `Client.ready`."""
        return await self._run(self._talker.ask(Call("GET", "/readyz"), ReadyResponse))

    async def rollback(self, to: int) -> EditResponse:
        """See `Client.rollback`."""
        return await self._run(self._talker.ask(_rollback(to), EditResponse))

    async def remove_task(self, name: str) -> EditResponse:
        """See `Client.remove_task`."""
        return await self._run(self._talker.ask(_remove_task(name), EditResponse))

    async def _batch(self, batch: list[NamedImage], question: Question) -> list[Answer]:
        return await self._run(self._talker.answer(await asyncio.to_thread(read_all, batch), question))

    async def _run(self, talk: Talk[Result]) -> Result:
        reply: Any = None
        try:
            while True:
                step = talk.send(reply)
                if isinstance(step, Pause):
                    reply = None
                    await asyncio.sleep(step.seconds)
                else:
                    reply = await self._send(step)
        except StopIteration as end:
            result: Result = end.value
            return result

    async def _send(self, call: Call) -> httpx.Response | httpx.TransportError:
        try:
            return await self._http.request(call.method, self._talker.server + call.path, **_parts(call))
        except httpx.TransportError as error:
            return error
        except (httpx.InvalidURL, UnicodeError) as error:
            raise ServiceError(f"{self._talker.server!r} is not a URL of a service: {error}") from error


def _headers(token: str | None) -> dict[str, str]:
    try:
        named_so = {"User-Agent": f"condu/{version('condu')}"}
    except PackageNotFoundError:  # run from its folder
        named_so = {}
    token = os.environ.get(TOKEN_VARIABLE, "") if token is None else token
    return named_so | ({"Authorization": f"Bearer {token.strip()}"} if token.strip() else {})


def _needs_authorities(server: str) -> bool:
    """Loading the certificate authorities takes 40 ms. Redirects are not followed, so plain HTTP stays plain HTTP."""
    return not server.startswith("http://") or bool(getproxies())


def _parts(call: Call) -> dict[str, Any]:
    found = {"params": call.params, "data": call.data, "files": call.files, "json": call.json}
    return {name: value for name, value in found.items() if value is not None}


def _batches(images: Iterable[Image], size: int) -> Iterator[list[NamedImage]]:
    rest = named(images)
    while batch := list(islice(rest, size)):
        yield batch


def _one_by_one(question: Question) -> None:
    if question.get("views") == "many":
        raise ConfigError("predict_many answers for each image alone: for views of one object there is predict")


def _pinned(question: Question, answers: list[Answer]) -> Question:
    """The same question to the version that answered; unchanged where none did."""
    versions = [answer.response.version for answer in answers if answer.response]
    return {**question, "version": versions[0]} if versions else question  # type: ignore[typeddict-item]


def _tasks(version: int | None) -> Call:
    return Call("GET", "/v1/tasks", params={} if version is None else {"version": version})


def _versions(before: int | None) -> Call:
    return Call("GET", "/v1/versions", params={} if before is None else {"before": before})


def _rollback(to: int) -> Call:
    return Call("POST", "/v1/versions/rollback", json={"to": to}, repeatable=False)


def _remove_task(name: str) -> Call:
    return Call("DELETE", f"/v1/tasks/{quote(name, safe='')}", repeatable=False)
