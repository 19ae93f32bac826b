"""The replica as Serve holds it, without Serve: what it starts, says of itself, and gives up."""

from __future__ import annotations

import asyncio
import time

import httpx
import pytest

from fusion.store import Store
from fusion.store.address import StoreAddress
from serving.options import ServiceOptions
from serving.replica import Replica
from tests.serving.helpers import form_of, pictures, publish_tasks


@pytest.fixture
def options(local_store: Store, monkeypatch: pytest.MonkeyPatch) -> ServiceOptions:
    monkeypatch.setattr("serving.replica.log_with_serve", lambda: None)  # what this process logs stays where it goes
    publish_tasks(local_store)
    return ServiceOptions(address=StoreAddress(local_store.url), poll_s=0.05)


async def until(told: object, wanted: object) -> None:
    deadline = time.monotonic() + 30
    while (await told()) != wanted:  # type: ignore[operator]
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


def test_it_is_ready_once_its_models_answer_follows_the_store_and_drains(
    options: ServiceOptions, local_store: Store
) -> None:
    async def story() -> None:
        replica = Replica(options)
        app = replica.__serve_build_asgi_app__()
        assert not (await replica.describe())["ready"]
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://replica") as client,
        ):

            async def version() -> object:
                said = (await client.get("/readyz")).json()
                return said["version"] if said["ready"] else None

            await until(version, 1)
            answer = await client.post("/v1/predict", files=form_of(pictures("red")), data={"task": "colours"})
            assert answer.status_code == 200, answer.text
            publish_tasks(local_store, {"late": ("green", "square")})
            await until(version, 2)
            said = await replica.describe()
            assert (said["version"], said["ready"], said["problem"]) == (2, True, None)
            stats = await replica.stats()
            assert (stats["images"], [key.partition("@")[0] for key in stats["experts"]]) == (1, ["colours"])
            await replica.check_health()
            await replica.drain()
            assert (await client.get("/readyz")).status_code == 503
            assert (await client.post("/v1/predict", files=form_of(pictures("red")))).status_code == 503

    asyncio.run(story())


def test_its_health_check_sees_a_watcher_that_ended_and_models_that_hang(options: ServiceOptions) -> None:
    async def story(monkeypatch: pytest.MonkeyPatch) -> None:
        replica = Replica(options)
        app = replica.__serve_build_asgi_app__()
        async with app.router.lifespan_context(app):
            await replica.check_health()

            async def hangs() -> None:
                await asyncio.Event().wait()

            monkeypatch.setattr(replica._models, "probe", hangs)
            monkeypatch.setattr(replica._models, "answered", 0.0)
            monkeypatch.setattr("serving.replica._HEALTH_DEADLINE_S", 0.1)
            monkeypatch.setattr("serving.replica._HEALTH_PERIOD_S", -1.0)
            with pytest.raises(TimeoutError):
                await replica.check_health()

            async def breaks() -> None:
                raise OSError("no more polls")

            broken = asyncio.create_task(breaks())
            await asyncio.wait([broken])
            replica._background.append(broken)
            with pytest.raises(RuntimeError, match="background task"):
                await replica.check_health()

    with pytest.MonkeyPatch.context() as monkeypatch:
        asyncio.run(story(monkeypatch))
