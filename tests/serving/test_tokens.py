"""Who comes in: tokens, their scopes and limits, and that no secret is kept, told or logged."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from fusion.errors import ConfigError, FormatError, StoreUnavailableError
from fusion.store import Store, open_store
from fusion.store.address import StoreAddress
from fusion.versions.gc import Policy, collect
from fusion.versions.history import Versions
from serving.callers import Allowance, Scope
from serving.door import check_tokens
from serving.options import LimitOptions, ServiceOptions
from serving.tokens import token as tokens_module
from serving.tokens.registry import add_token, read_tokens, remove_token, token_keys
from serving.tokens.token import SCOPES, Token, new_token
from tests.serving.helpers import error_of, form_of, pictures, png, publish_tasks
from tests.serving.plain import PlainService

GOOD = png(pictures("red")[0])
ELSEWHERE: dict[str, Any] = {"host": "0.0.0.0"}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = open_store(str(tmp_path / "store"))
    publish_tasks(store, {"a": ("red", "blue")})
    return store


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was hashed for a comparison, in order."""
    seen: list[str] = []
    matches = Token.matches
    monkeypatch.setattr(Token, "matches", lambda self, given: seen.append(given) or matches(self, given))
    return seen


def give(store: Store, name: str = "app", scope: str = "predict", **more: Any) -> str:
    token, record = new_token(name, scope, **more)
    add_token(store, record)
    return token


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def run(store: Store, story: Callable[[PlainService, httpx.AsyncClient], Awaitable[None]], **options: Any) -> None:
    async def whole() -> None:
        service = PlainService(store, **{**ELSEWHERE, **options})
        async with service as client:
            await story(service, client)

    asyncio.run(asyncio.wait_for(whole(), 60))


@pytest.mark.parametrize(
    ("options", "asks"),
    [
        ({}, False),
        ({"host": "localhost"}, False),
        ({"host": "::1"}, False),
        ({"host": "0.0.0.0"}, True),
        ({"host": "10.0.0.7"}, True),
        ({"host": "condu.example"}, True),
        ({"host": "0.0.0.0", "auth": "none"}, False),
        ({"auth": "tokens"}, True),
        ({"host_is_told": False}, True),
    ],
)
def test_tokens_are_asked_for_wherever_more_than_this_machine_listens(
    tmp_path: Path, options: dict[str, Any], asks: bool
) -> None:
    store = open_store(str(tmp_path / "store"))
    found = ServiceOptions(address=StoreAddress(store.url), **options)
    assert found.asks_for_tokens is asks
    if not asks:
        check_tokens(found)
        return
    with pytest.raises(ConfigError, match="has no valid one"):
        check_tokens(found)
    give(store, lifetime=timedelta(seconds=-1))
    with pytest.raises(ConfigError, match="has no valid one"):
        check_tokens(found)
    give(store, "other")
    check_tokens(found)


def test_every_route_but_health_and_pages_wants_a_token(store: Store) -> None:
    token = give(store)

    async def story(_: PlainService, client: httpx.AsyncClient) -> None:
        paths: dict[str, Any] = (await client.get("/openapi.json")).json()["paths"]
        assert {path for path in paths if not path.startswith("/v1/")} == {"/healthz", "/readyz"}
        for path, methods in paths.items():
            for method, described in methods.items():
                answer = await client.request(method, path)
                assert answer.status_code == (401 if path.startswith("/v1/") else 200), path
                assert ("security" in described) == path.startswith("/v1/"), path
                if path.startswith("/v1/"):
                    assert answer.headers["WWW-Authenticate"] == 'Bearer realm="condu"'
                    assert "asks for a token" in error_of(answer)
                    assert {"401", "403", "429"} <= set(described["responses"])
        for path in ("/docs", "/openapi.json"):
            assert (await client.get(path)).status_code == 200
        answer = await client.post("/v1/predict", files=form_of([GOOD]), headers=bearer(token))
        assert answer.status_code == 200, answer.text
        assert (await client.get("/v1/tasks", headers=bearer(token))).status_code == 200

    run(store, story)


def test_what_is_no_valid_token_is_refused_alike(store: Store, hashed: list[str]) -> None:
    token = give(store)
    expired = give(store, "old", lifetime=timedelta(seconds=-1))
    made_up, _ = new_token("app", "admin")
    wrong = token[:-1] + ("A" if token[-1] != "A" else "B")

    async def story(_: PlainService, client: httpx.AsyncClient) -> None:
        said = set()
        for bad in (expired, made_up, wrong, "nonsense", token + "x"):
            answer = await client.get("/v1/tasks", headers=bearer(bad))
            assert answer.status_code == 401, bad
            assert 'error="invalid_token"' in answer.headers["WWW-Authenticate"]
            said.add(error_of(answer))
        assert len(said) == 1
        basic = await client.get("/v1/tasks", headers={"Authorization": f"Basic {token}"})
        assert basic.status_code == 401
        assert hashed == [expired, wrong], "what names no record costs no hash"

    run(store, story)


def test_a_token_is_hashed_once_and_works_until_it_is_revoked(store: Store, hashed: list[str]) -> None:
    async def story(service: PlainService, client: httpx.AsyncClient) -> None:
        token = give(store)
        assert (await client.get("/v1/tasks", headers=bearer(token))).status_code == 401
        await service.keeper.poll()
        for _ in range(3):
            assert (await client.get("/v1/tasks", headers=bearer(token))).status_code == 200
        assert hashed == [token]
        remove_token(store, "app")
        again = give(store)
        await service.keeper.poll()
        assert (await client.get("/v1/tasks", headers=bearer(token))).status_code == 401
        assert (await client.get("/v1/tasks", headers=bearer(again))).status_code == 200

    run(store, story)


def test_a_store_that_is_away_leaves_the_tokens_that_are_known(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    token = give(store)

    def away(_: Store) -> list[str]:
        raise StoreUnavailableError("away")

    async def story(service: PlainService, client: httpx.AsyncClient) -> None:
        monkeypatch.setattr("serving.tokens.keeper.token_keys", away)
        await service.keeper.poll()
        assert (await client.get("/v1/tasks", headers=bearer(token))).status_code == 200
        service.keeper._read = None  # as before the first poll
        assert (await client.get("/v1/tasks", headers=bearer(token))).status_code == 503

    run(store, story)


def test_a_damaged_record_is_refused_and_leaves_the_others(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    token = give(store)
    for number, body in enumerate((b"no json", b"{}", b'{"format": "condu-token/1", "name": "x"}', b"[1]")):
        store.put_if_absent(f"tokens/bad{number}@0123456789abcdef.json", body)

    async def story(service: PlainService, client: httpx.AsyncClient) -> None:
        await service.keeper.poll()
        assert (await client.get("/v1/tasks", headers=bearer(token))).status_code == 200

    run(store, story)
    assert caplog.text.count("is not the record of a token") == 4, "told once, not with every poll"
    assert sum(isinstance(found, FormatError) for found in read_tokens(store)) == 4


def test_the_scope_of_a_token_is_what_it_may_do(store: Store) -> None:
    token, admin = give(store), give(store, "ops", "admin")
    assert SCOPES["predict"] == {Scope.PREDICT, Scope.READ}

    async def story(_: PlainService, client: httpx.AsyncClient) -> None:
        refused = await client.delete("/v1/tasks/a", headers=bearer(token))
        assert refused.status_code == 403
        assert "app may not do this: it requires the scope 'admin'" in error_of(refused)
        assert (await client.get("/v1/tasks", headers=bearer(admin))).status_code == 200

    run(store, story)


def test_limits_are_those_of_the_token_and_say_when_to_come_back(store: Store) -> None:
    general, own = give(store), give(store, "own", requests_per_s=0.1)

    async def story(_: PlainService, client: httpx.AsyncClient) -> None:
        async def statuses(token: str, count: int) -> list[int]:
            return [(await client.get("/v1/tasks", headers=bearer(token))).status_code for _ in range(count)]

        assert await statuses(general, 4) == [200, 200, 200, 429]
        assert await statuses(own, 2) == [200, 429]
        late = await client.get("/v1/tasks", headers=bearer(own))
        assert 8 <= int(late.headers["Retry-After"]) <= 10
        assert "more requests a second" in error_of(late)
        assert late.json()["type"] == "urn:condu:LimitError"
        assert (await client.get("/healthz", headers=bearer(own))).status_code == 200

    run(store, story, limits=LimitOptions(requests_per_s=3))


def test_images_are_counted_apart(store: Store) -> None:
    token = give(store, images_per_s=2)

    async def story(_: PlainService, client: httpx.AsyncClient) -> None:
        async def ask(count: int) -> httpx.Response:
            return await client.post("/v1/predict", files=form_of([GOOD] * count), headers=bearer(token))

        assert (await ask(6)).status_code == 200  # larger than a second's worth: it passes, and is owed
        late = await ask(1)
        assert late.status_code == 429
        assert 2 <= int(late.headers["Retry-After"]) <= 3
        assert (await client.get("/v1/tasks", headers=bearer(token))).status_code == 200

    run(store, story)


def test_an_allowance_grants_no_more_than_its_rate_and_never_starves_a_large_demand() -> None:
    now = 0.0
    allowance = Allowance(10, clock=lambda: now)
    granted = 0
    for _ in range(1000):
        now += 0.01
        granted += 7 if allowance.spend(7) == 0 else 0
    assert 90 <= granted <= 10 * 10 + 10
    now += 100
    assert allowance.spend(50) == 0
    wait = allowance.spend(50)
    assert wait == pytest.approx(5)
    now += wait
    assert allowance.spend(50) == 0


def test_the_store_keeps_hashes_and_nothing_tells_or_logs_a_secret(
    store: Store, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    token = give(store, "ops", "admin")
    secret = token.rpartition("_")[2]
    caplog.set_level(logging.DEBUG)

    async def story(_: PlainService, client: httpx.AsyncClient) -> None:
        told = ""
        for method, path in (
            ("GET", "/v1/tasks"), ("GET", "/v1/versions"), ("GET", "/v1/tasks?version=99"),
            ("DELETE", "/v1/tasks/none"),
            ("POST", "/v1/versions/rollback"), ("POST", "/v1/predict"), ("GET", f"/{token}x"),
        ):  # fmt: skip
            for given in (token, token + "x"):
                answer = await client.request(method, path, headers=bearer(given))
                told += "" if secret in path else answer.text + str(answer.headers)
        assert secret not in told
        assert store.url not in told
        assert str(Path(store.url.removeprefix("file://"))) not in told
        assert "Traceback" not in told

    run(store, story)
    kept = b"".join(store.get(info.key) for info in store.list(""))
    assert secret.encode() not in kept
    logged = "\n".join(line for line in caplog.text.splitlines() if f"/{token}x" not in line)
    assert secret not in logged


def test_names_are_keys_and_versions_know_nothing_of_tokens(store: Store) -> None:
    give(store)
    with pytest.raises(ConfigError, match="has a token 'app' already"):
        give(store)
    give(store, "app.2")
    for bad in ("", "A", "a b", "../x", "x" * 65):
        with pytest.raises(ConfigError, match="ill-formed"):
            new_token(bad, "predict")
    with pytest.raises(ConfigError, match="predict or admin"):
        new_token("x", "all")
    with pytest.raises(ConfigError, match="above 0"):
        new_token("x", "predict", images_per_s=0)
    collect(Versions(store), Policy(keep=1, keep_days=0))
    assert len(token_keys(store)) == 2
    remove_token(store, "app")
    assert [token.name for token in read_tokens(store) if isinstance(token, Token)] == ["app.2"]
    with pytest.raises(ConfigError, match=r"has no token 'app': it has app\.2"):
        remove_token(store, "app")


def test_a_comparison_takes_the_same_time_however_much_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[str, str]] = []
    monkeypatch.setattr(
        tokens_module.hmac, "compare_digest", lambda a, b: bool(compared.append((a, b))) or a == b  # type: ignore[func-returns-value]
    )  # fmt: skip
    token, record = new_token("app", "predict")
    assert record.matches(token)
    assert not record.matches(token[:-2] + "AA")
    assert len(compared) == 2
    assert all(len(a) == len(b) == 64 for a, b in compared)
