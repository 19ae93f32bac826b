"""The clients, against the real HTTP application: typed answers, what is repeated and for how long, and batches."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from fusion.errors import ConfigError, DataError, ImageError
from fusion.store import Store, open_store
from serving.client import AsyncClient, Client, ServiceError
from serving.client.retries import Retries, retry_after_s
from tests.serving.helpers import pictures, png, publish_tasks
from tests.serving.listening import listening
from tests.serving.plain import PlainService

GOOD = [png(image) for image in pictures("red", "circle", "blue", "square", "green")]
ANSWER = {
    "version": 3, "label_space": "seen", "matched": {}, "expert_forwards": 1, "seconds": 0.1,
    "predictions": [
        {"image": "x", "label": "a", "task": "t", "probability": 0.5, "experts": ["t"], "top": [], "rule": None,
         "familiarity": None, "unknown": None}
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = open_store(str(tmp_path_factory.mktemp("store")))
    publish_tasks(store)
    return store


def scripted(*replies: Any) -> tuple[httpx.MockTransport, list[httpx.Request]]:
    """A network on which the service gives these replies in turn, the last one for ever; and what it was sent."""
    sent: list[httpx.Request] = []

    def reply(request: httpx.Request) -> httpx.Response:
        one = replies[min(len(sent), len(replies) - 1)]
        sent.append(request)
        if isinstance(one, Exception):
            raise one
        if isinstance(one, str):  # of a proxy in front of the service
            return httpx.Response(int(one[:3]), text=one[4:])
        status, headers = one if isinstance(one, tuple) else (one, {})
        body = ANSWER if status == 200 else {"type": "urn:condu:SomeError", "detail": "no", "status": status}
        return httpx.Response(status, headers=headers, json=body)

    return httpx.MockTransport(reply), sent


def test_both_clients_give_the_typed_answers_of_a_real_service(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "red.png"
    path.write_bytes(GOOD[0])

    async def asked(url: str) -> list[Any]:
        async with AsyncClient(url) as client:
            return [await client.predict([path], task="colours"), await client.tasks(), await client.versions()]

    with listening(PlainService(store)) as url, Client(url) as client:
        answer = client.predict([path], task="colours")
        assert (answer.version, answer.label_space) == (1, "task")
        assert answer.predictions[0].image == str(path)
        assert answer.predictions[0].top[0].label == answer.predictions[0].label
        assert [task.name for task in client.tasks().tasks] == ["colours", "shapes", "pair"]
        assert client.versions().serving == 1
        assert client.ready().ready
        theirs, tasks, versions = asyncio.run(asked(url))
        assert theirs.predictions == answer.predictions
        assert (tasks, versions) == (client.tasks(), client.versions())
        with pytest.raises(ServiceError, match="did you mean colours") as wrong:
            client.predict([path], task="colour")
        assert (wrong.value.status, wrong.value.kind) == (404, "UnknownTaskError")


def test_a_client_embeds_and_shows_several_views_of_one_object(store: Store) -> None:
    words: Any = {"labels": ["red", "blue"], "templates": ["a {}."], "task": "colours"}

    async def embedded(url: str) -> Any:
        async with AsyncClient(url) as client:
            return await client.embed(GOOD[:3], **words)

    with listening(PlainService(store)) as url, Client(url) as client:
        answer = client.predict(GOOD[:3], task="colours", views="many", combine="max")
        assert [one.views for one in answer.predictions] == [3]
        with pytest.raises(ConfigError, match="views of one object"):
            next(client.predict_many(GOOD, views="many"))

        found = client.embed(GOOD[:3], **words)
        assert found.images.shape == (3, found.texts.shape[1])
        assert found.texts.shape[0] == 2
        assert np.allclose(np.linalg.norm(found.images, axis=1), 1, atol=1e-5)
        assert found.model.startswith("colours@")
        assert np.array_equal(asyncio.run(embedded(url)).images, found.images)
        raw = client.embed(GOOD[:3], normalize=False)
        assert (raw.model, raw.texts.shape) == ("base", (0, raw.images.shape[1]))
        assert not np.allclose(np.linalg.norm(raw.images, axis=1), 1, atol=1e-3)
        with pytest.raises(ServiceError, match="nothing to embed"):
            client.embed()
        with pytest.raises(ConfigError, match="'top_k'"):
            client.embed(GOOD[:1], top_k=3)  # type: ignore[call-arg]


def test_a_batch_answers_in_order_and_names_its_bad_images(store: Store, tmp_path: Path) -> None:
    images: list[Any] = [(f"{i}.png", GOOD[i % 5]) for i in range(20)]
    images[3] = ("three", b"no image")
    images[7] = tmp_path / "none.png"
    images[19] = ("last", b"")

    async def gathered(url: str) -> list[Any]:
        async with AsyncClient(url) as client:
            return [answer async for answer in client.predict_many(images, batch_size=6, concurrency=2)]

    with listening(PlainService(store)) as url, Client(url) as client:
        answers = list(client.predict_many(images, batch_size=6, concurrency=2))
        assert [answer.image for answer in answers] == [str(i[0]) if isinstance(i, tuple) else str(i) for i in images]
        assert [i for i, answer in enumerate(answers) if answer.problem] == [3, 7, 19]
        assert "three is not an image" in str(answers[3].problem)
        assert isinstance(answers[7].problem, DataError)
        assert isinstance(answers[19].problem, ImageError)
        alone = client.predict([images[0]]).predictions[0]
        first = answers[0].prediction
        assert first is not None
        assert (first.label, first.task, first.experts) == (alone.label, alone.task, alone.experts)
        assert [a.prediction and a.prediction.label for a in asyncio.run(gathered(url))] == [
            a.prediction and a.prediction.label for a in answers
        ]


def test_a_body_too_large_for_the_service_is_sent_in_smaller_parts(store: Store) -> None:
    limit = 3 * len(GOOD[0])
    images = [(str(i), GOOD[0]) for i in range(5)] + [("huge", GOOD[0] + bytes(limit))]
    with listening(PlainService(store, max_body_bytes=limit)) as url, Client(url) as client:
        answers = list(client.predict_many(images))
    assert [answer.problem is None for answer in answers] == [True] * 5 + [False]
    assert "huge is too large" in str(answers[5].problem)


def test_a_batch_stays_on_the_version_that_answered_first(local_store: Store) -> None:
    publish_tasks(local_store, {"a": ("red", "blue")})
    service = PlainService(local_store)
    with listening(service) as url, Client(url) as client:
        answers = client.predict_many([("x", body) for body in GOOD], batch_size=1)
        first = next(answers)
        publish_tasks(local_store, {"b": ("red", "green")})
        asyncio.run(service.watcher.poll())
        assert client.tasks().version == 2
        assert {a.response.version for a in [first, *answers] if a.response} == {1}


@pytest.mark.parametrize(
    "refusal",
    [
        408,
        429,
        502,
        503,
        504,
        "500 Internal Server Error",
        "404 Not found",
        httpx.ReadError("cut"),
        httpx.ConnectError("gone"),
    ],
    ids=repr,
)
def test_what_passes_is_repeated(refusal: Any) -> None:
    transport, sent = scripted(200, refusal, refusal, 200)
    with Client("http://x", transport=transport) as client:
        client.predict([GOOD[0]])
        assert client.predict([GOOD[0]]).version == 3
    assert len(sent) == 4
    assert sent[1].read() != b""
    assert b"PNG" in sent[3].read()  # the body is sent again, whole


@pytest.mark.parametrize("refusal", [401, 403, 404, 422, 500])
def test_what_would_not_pass_is_not_repeated(refusal: int) -> None:
    transport, sent = scripted(200, refusal)
    with Client("http://x", transport=transport) as client:
        client.predict([GOOD[0]])
        with pytest.raises(ServiceError) as refused:
            client.predict([GOOD[0]])
    assert (refused.value.status, refused.value.kind, len(sent)) == (refusal, "SomeError", 2)


def test_what_never_answered_as_a_service_is_asked_once() -> None:
    transport, sent = scripted("404 Not found")
    with Client("http://x", transport=transport) as client:
        for _ in range(2):
            with pytest.raises(ServiceError, match="not a condu service"):
                client.predict([GOOD[0]])
    assert len(sent) == 2


def test_a_service_that_never_answered_is_not_waited_for() -> None:
    transport, sent = scripted(httpx.ConnectError("refused"))
    with Client("http://x", transport=transport) as client, pytest.raises(ServiceError, match="does not answer"):
        client.predict([GOOD[0]])
    assert len(sent) == 1


def test_patience_ends_and_what_the_service_asks_for_is_not_undercut(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr("serving.client.client.time.sleep", slept.append)
    transport, sent = scripted((429, {"Retry-After": "7"}), 200)
    with Client("http://x", transport=transport) as client:
        client.predict([GOOD[0]])
    assert 7 <= slept[0] <= 8.75
    transport, sent = scripted((503, {"Retry-After": "100"}))
    with Client("http://x", transport=transport) as client, pytest.raises(ServiceError):
        client.predict([GOOD[0]])
    assert len(sent) == 1
    assert len(slept) == 1
    retries = Retries(patience_s=1e9)
    pauses = [retries.pause_s(None) or 0.0 for _ in range(20)]
    assert max(pauses) <= 8
    assert pauses[8] >= 4


def test_retry_after_may_be_a_date_or_nonsense() -> None:
    assert retry_after_s({"retry-after": "3"}) == 3
    assert retry_after_s({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0
    assert retry_after_s({"retry-after": "soon"}) is None
    assert retry_after_s({}) is None


@pytest.mark.parametrize(("reply", "attempts"), [(httpx.ReadError("cut"), 1), (504, 1), (503, 1), (429, 2)], ids=repr)
def test_a_change_is_repeated_only_where_it_certainly_was_not_made(reply: Any, attempts: int) -> None:
    transport, sent = scripted(reply, 404)
    with Client("http://x", transport=transport) as client, pytest.raises(ServiceError):
        client.remove_task("a/b")
    assert len(sent) == attempts
    assert sent[0].url.raw_path == b"/v1/tasks/a%2Fb"


def test_a_token_is_sent_and_comes_from_the_environment_where_none_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    def header(**given: Any) -> str | None:
        transport, sent = scripted(200)
        with Client("http://x", transport=transport, **given) as client:
            client.predict([GOOD[0]])
        found: str | None = sent[0].headers.get("Authorization")
        return found

    monkeypatch.delenv("CONDU_TOKEN", raising=False)
    assert header() is None
    monkeypatch.setenv("CONDU_TOKEN", "from-there\n")
    assert header() == "Bearer from-there"
    assert header(token="mine") == "Bearer mine"


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (lambda _: httpx.Response(200, text="<html>"), "is not a condu service"),
        (lambda _: httpx.Response(502, text="<html>"), "answered 502 without JSON"),
        (lambda _: httpx.Response(200, json={"version": 1}), "of another release"),
    ],
)
def test_something_else_that_answers_is_told(answer: Callable[[httpx.Request], httpx.Response], says: str) -> None:
    client = Client("http://x", transport=httpx.MockTransport(answer), patience_s=0)
    with client, pytest.raises(ServiceError, match=says):
        client.predict([GOOD[0]])


def test_a_question_has_no_other_fields() -> None:
    transport, _ = scripted(200)
    with Client("http://x", transport=transport) as client, pytest.raises(ConfigError, match="'tasks'"):
        client.predict([GOOD[0]], tasks="x")  # type: ignore[call-arg]
