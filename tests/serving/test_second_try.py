"""A request whose replica is silent or gone: sent to another one where that does no harm, and answered in JSON."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest
from ray.serve._private.http_util import validate_http_proxy_callback_return
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving import second_try
from serving.second_try import SecondTry, middlewares

SILENT_S = 0.05
Reply = Callable[[Request], Awaitable[Response | None]]


class Replicas:
    """Behind the proxy: the first request gets the first reply, and so on. `bodies` are those that arrived whole."""

    def __init__(self, *replies: Reply) -> None:
        self.bodies: list[bytes] = []
        self.cancelled = 0
        self._replies = iter(replies)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        reply = next(self._replies)
        request = Request(scope, receive)
        try:
            self.bodies.append(await request.body())
            answer = await reply(request)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if answer is not None:
            await answer(scope, receive, send)


async def fine(request: Request) -> Response:
    return JSONResponse({"answer": 42})


async def silent(request: Request) -> Response:
    await asyncio.Event().wait()
    raise AssertionError


async def gone(request: Request) -> None:
    """Serve's proxy answers nothing, which uvicorn turns into a 500, where a replica died with the request."""


async def too_late(request: Request) -> Response:
    await asyncio.sleep(4 * SILENT_S)
    return PlainTextResponse("Request 7 timed out after 35s.", 408)


async def crashed(request: Request) -> Response:
    return JSONResponse({"type": "urn:condu:InternalServerError"}, 500, media_type="application/problem+json")


async def not_there(request: Request) -> Response:
    return PlainTextResponse("no replica", 503)


async def ask(app: ASGIApp, method: str, path: str, body: bytes = b"image") -> httpx.Response:
    transport = httpx.ASGITransport(SecondTry(app, silent_s=SILENT_S))
    async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
        return await client.request(method, path, content=body, headers={"X-Request-Id": "seven"})


@pytest.mark.anyio
@pytest.mark.parametrize("first", [silent, gone, not_there])
@pytest.mark.parametrize(("method", "path"), [("POST", "/v1/predict"), ("POST", "/v1/embed"), ("GET", "/v1/tasks")])
async def test_another_replica_gets_the_whole_request(first: Reply, method: str, path: str) -> None:
    replicas = Replicas(first, fine)
    answer = await ask(replicas, method, path)
    assert answer.status_code == 200
    assert answer.json() == {"answer": 42}
    assert replicas.bodies == [b"image"] * 2


@pytest.mark.anyio
async def test_the_one_that_was_silent_is_told_that_nobody_waits() -> None:
    replicas = Replicas(silent, fine)
    await ask(replicas, "POST", "/v1/predict")
    await asyncio.sleep(0)
    assert replicas.cancelled == 1


@pytest.mark.anyio
async def test_the_first_replica_may_still_be_the_first_to_answer() -> None:
    async def slow(request: Request) -> Response:
        await asyncio.sleep(2 * SILENT_S)
        return JSONResponse({"answer": "slow"})

    assert (await ask(Replicas(slow, silent), "POST", "/v1/predict")).json() == {"answer": "slow"}


@pytest.mark.anyio
@pytest.mark.parametrize(("method", "path"), [("POST", "/v1/versions/rollback"), ("DELETE", "/v1/tasks/pets")])
async def test_what_changes_something_is_never_sent_twice(method: str, path: str) -> None:
    replicas = Replicas(gone, fine)
    answer = await ask(replicas, method, path)
    assert answer.status_code == 503
    assert len(replicas.bodies) == 1


@pytest.mark.anyio
async def test_a_body_that_is_too_large_to_keep_gets_one_try(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(second_try, "_LONGEST_BODY", 10)
    replicas = Replicas(gone, fine)
    answer = await ask(replicas, "POST", "/v1/predict", b"x" * 11)
    assert answer.status_code == 503
    assert replicas.bodies == [b"x" * 11], "it arrived whole nevertheless"


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("replies", "status", "kind"),
    [((gone, gone), 503, "ReplicaLostError"), ((not_there, gone), 503, "ReplicaLostError"),
     ((too_late, silent), 504, "RequestTimeoutError")],
)  # fmt: skip
async def test_what_no_replica_answers_gets_a_problem_document(
    replies: tuple[Reply, ...], status: int, kind: str
) -> None:
    answer = await ask(Replicas(*replies), "POST", "/v1/predict")
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["retry-after"] == "1"
    problem: dict[str, Any] = answer.json()
    assert (
        (problem["status"], problem["type"]) == (answer.status_code, f"urn:condu:{kind}") == (status, problem["type"])
    )
    assert problem["instance"] == "seven"


@pytest.mark.anyio
async def test_an_error_of_a_replica_is_its_answer() -> None:
    answer = await ask(Replicas(crashed, fine), "POST", "/v1/predict")
    assert (answer.status_code, answer.json()["type"]) == (500, "urn:condu:InternalServerError")


@pytest.mark.anyio
async def test_where_all_replicas_are_slow_few_requests_are_doubled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(second_try, "_MOST_AT_ONCE", 1)
    go = asyncio.Event()

    async def later(request: Request) -> Response:
        await go.wait()
        return JSONResponse({})

    replicas = Replicas(*[later] * 6)
    app = SecondTry(replicas, silent_s=SILENT_S)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as client:
        asked = [asyncio.create_task(client.post("/v1/predict", content=b"x")) for _ in range(3)]
        await asyncio.sleep(6 * SILENT_S)
        assert len(replicas.bodies) == 4, "three, and one of them twice"
        go.set()
        assert [answer.status_code for answer in await asyncio.gather(*asked)] == [200] * 3


@pytest.mark.anyio
async def test_nothing_is_sent_for_a_client_that_has_left() -> None:
    messages: list[Message] = [{"type": "http.request", "body": b"image"}, {"type": "http.disconnect"}]
    sent: list[Message] = []

    async def receive() -> Message:
        return messages.pop(0)

    async def send(message: Message) -> None:
        sent.append(message)

    async def leaves(request: Request) -> None:
        assert await request.is_disconnected() or (await request.receive())["type"] == "http.disconnect"

    replicas = Replicas(leaves, fine)
    scope = {"type": "http", "method": "POST", "path": "/v1/predict", "headers": [], "query_string": b""}
    await SecondTry(replicas, silent_s=SILENT_S)(scope, receive, send)
    assert sent == []
    assert len(replicas.bodies) == 1


@pytest.mark.anyio
async def test_serves_own_pages_pass_as_they_are() -> None:
    answer = await ask(Replicas(not_there), "GET", "/-/healthz")
    assert (answer.status_code, answer.text) == (503, "no replica")


def test_serve_takes_what_it_is_given() -> None:
    assert [one.cls for one in validate_http_proxy_callback_return(middlewares())] == [SecondTry]
