"""The doors that publish: rolling back and removing a task over HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from fusion.store import Store, open_store
from fusion.versions.history import Versions
from serving.tokens.registry import add_token
from serving.tokens.token import new_token
from tests.serving.helpers import error_of, publish_tasks
from tests.serving.plain import PlainService


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = open_store(str(tmp_path / "store"))
    publish_tasks(store, {"a": ("red", "blue")})
    publish_tasks(store, {"b": ("red", "green")})
    return store


def run(store: Store, story: Callable[[PlainService, httpx.AsyncClient], Awaitable[None]], **options: Any) -> None:
    async def whole() -> None:
        service = PlainService(store, **options)
        async with service as client:
            client.base_url = httpx.URL("http://127.0.0.1:8000")
            await story(service, client)

    asyncio.run(asyncio.wait_for(whole(), 60))


def test_a_version_is_rolled_back_and_a_task_removed_and_served_so(store: Store) -> None:
    token, record = new_token("ops", "admin")
    add_token(store, record)

    async def story(service: PlainService, client: httpx.AsyncClient) -> None:
        client.headers["Authorization"] = f"Bearer {token}"
        back = await client.post("/v1/versions/rollback", json={"to": 1})
        assert back.json() == {"version": 3, "changed": True, "tasks": ["a"], "removed": []}
        again = await client.post("/v1/versions/rollback", json={"to": 1})
        assert (again.json()["version"], again.json()["changed"]) == (3, False)
        assert (await client.post("/v1/versions/rollback", json={"to": 2})).json()["tasks"] == ["a", "b"]
        gone = await client.delete("/v1/tasks/b")
        assert gone.json() == {"version": 5, "changed": True, "tasks": ["a"], "removed": ["b"]}
        assert (await client.delete("/v1/tasks/b")).json()["changed"] is False
        await service.watcher.poll()
        assert (await client.get("/v1/tasks")).json()["version"] == 5
        assert Versions(store).read(5).created["token"] == "ops"
        assert "ops" not in (await client.get("/v1/versions")).text

    run(store, story, host="0.0.0.0")


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "says"),
    [
        ("POST", "/v1/versions/rollback", {"json": {"to": 9}}, 404, "no version 9"),
        ("POST", "/v1/versions/rollback", {"json": {"to": 0}}, 422, "to:"),
        ("POST", "/v1/versions/rollback", {"json": {"to": 1, "force": True}}, 422, "force"),
        ("POST", "/v1/versions/rollback", {"content": b"{", "headers": {"Content-Type": "application/json"}}, 422, ""),
        ("POST", "/v1/versions/rollback", {"content": b'{"to": 1}'}, 415, "application/json"),
        ("POST", "/v1/versions/rollback", {"json": {"to": 1, "x": "x" * 2000}}, 413, "the limit is 1000: {"),
        ("DELETE", "/v1/tasks/c", {}, 404, "has no task 'c'"),
        ("DELETE", f"/v1/tasks/{'c' * 65}", {}, 422, "name"),
    ],
)
def test_what_cannot_be_done_is_told_and_publishes_nothing(
    store: Store, method: str, path: str, body: dict[str, Any], status: int, says: str
) -> None:
    async def story(_: PlainService, client: httpx.AsyncClient) -> None:
        answer = await client.request(method, path, **body)
        assert answer.status_code == status, answer.text
        assert says in error_of(answer)
        assert store.url not in answer.text

    run(store, story)
    assert Versions(store).newest_number() == 2


def test_without_tokens_only_programs_on_this_machine_may_publish(store: Store) -> None:
    async def story(_: PlainService, client: httpx.AsyncClient) -> None:
        for headers in ({"Host": "evil.example"}, {"Origin": "http://evil.example"}, {"Host": ""}):
            answer = await client.delete("/v1/tasks/a", headers=headers)
            assert answer.status_code == 403
            assert "on this machine alone" in error_of(answer)
        assert Versions(store).newest_number() == 2
        assert (await client.delete("/v1/tasks/a")).status_code == 200

    run(store, story)


@pytest.mark.parametrize("options", [{"host": "0.0.0.0"}, {"host_is_told": False}])
def test_without_tokens_nothing_is_published_for_a_network(store: Store, options: dict[str, Any]) -> None:
    async def story(_: PlainService, client: httpx.AsyncClient) -> None:
        assert (await client.get("/v1/tasks")).status_code == 200
        for answer in (
            await client.delete("/v1/tasks/a"),
            await client.post("/v1/versions/rollback", json={"to": 1}),
        ):
            assert answer.status_code == 403
            assert "requires the scope 'admin'" in error_of(answer)

    run(store, story, auth="none", **options)
    assert Versions(store).newest_number() == 2
