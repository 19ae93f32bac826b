"""The version being served, against a real store."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import pytest

from fusion.answers.view import View
from fusion.errors import (
    BlobNotFoundError,
    DamagedBlobError,
    StoreUnavailableError,
    UnknownVersionError,
    VersionGoneError,
)
from fusion.store import Store
from fusion.store.node_cache import NodeCache
from fusion.versions import edits
from fusion.versions.gc import Policy, collect
from fusion.versions.history import Versions, manifest_key
from serving.errors import NotReadyError
from serving.watch import VersionWatcher, newest_readable
from tests.fusion.faults import flip_a_bit
from tests.serving.helpers import publish_tasks


def watcher_of(store: Store) -> VersionWatcher:
    return VersionWatcher(NodeCache(store), poll_s=0.01)


def damage_version(store: Store, number: int) -> None:
    store.delete(manifest_key(number))
    store.put_if_absent(manifest_key(number), b'{"version": 2, "sha256": "0"}')


def test_an_empty_store_is_waited_for(local_store: Store) -> None:
    async def story() -> None:
        watcher = watcher_of(local_store)
        assert not await watcher.poll()
        with pytest.raises(NotReadyError, match="nothing was published"):
            await watcher.view(None)
        publish_tasks(local_store, {"a": ("red",)})
        assert await watcher.poll()
        assert (await watcher.view(None)).version == 1
        assert watcher.problem is None

    asyncio.run(story())


def test_a_new_version_is_staged_before_it_is_swapped_in(local_store: Store) -> None:
    publish_tasks(local_store, {"a": ("red",)})
    staged: list[tuple[int | None, int]] = []

    async def stage(before: View | None, after: View) -> None:
        held = watcher.current.version if watcher.current else None
        staged.append((held, after.version))
        raise RuntimeError("what goes wrong while staging does not hold the swap up")

    watcher = VersionWatcher(NodeCache(local_store), poll_s=0.01, stage=stage)

    async def story() -> None:
        await watcher.poll()
        publish_tasks(local_store, {"b": ("blue",)})
        running = asyncio.create_task(watcher.run())
        while (await watcher.view(None)).version != 2:
            await asyncio.sleep(0.01)
        running.cancel()

    asyncio.run(asyncio.wait_for(story(), 20))
    assert staged == [(None, 1), (1, 2)]


def test_a_damaged_newest_version_leaves_the_old_one_served(
    local_store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    publish_tasks(local_store, {"a": ("red",)})

    async def story() -> None:
        watcher = watcher_of(local_store)
        await watcher.poll()
        publish_tasks(local_store, {"b": ("blue",)})
        whole = local_store.get(manifest_key(2))
        damage_version(local_store, 2)
        with caplog.at_level(logging.WARNING, "serving.watch"):
            for _ in range(3):
                assert not await watcher.poll()
        assert [r.message.count("DamagedBlobError") for r in caplog.records] == [1]  # once, not at every poll
        assert (await watcher.view(None)).version == 1
        assert "damaged" in (watcher.problem or "")

        late = watcher_of(local_store)  # a replica that starts now serves what the others have
        await late.poll()
        assert (await late.view(None)).version == 1
        assert "damaged" in (late.problem or "")

        local_store.delete(manifest_key(2))
        local_store.put_if_absent(manifest_key(2), whole)
        assert await watcher.poll()
        assert watcher.problem is None

    asyncio.run(story())


def test_a_new_version_with_a_damaged_record_leaves_the_old_one_served(local_store: Store) -> None:
    publish_tasks(local_store, {"a": ("red",)})

    async def story() -> None:
        watcher = watcher_of(local_store)
        await watcher.poll()
        publish_tasks(local_store, {"b": ("blue",)})
        record = Versions(local_store).read(2).state.tasks["b"].record
        flip_a_bit(local_store, record.key)
        assert not await watcher.poll()
        assert (await watcher.view(None)).version == 1
        assert f"{record.key} is damaged" in (watcher.problem or "")
        with pytest.raises(DamagedBlobError, match=record.key):
            await watcher.view(2)
        flip_a_bit(local_store, record.key)  # mended
        assert await watcher.poll()
        assert (await watcher.view(None)).version == 2

    asyncio.run(story())


def test_a_store_that_does_not_answer_leaves_the_version_served(
    local_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_tasks(local_store, {"a": ("red",)})

    async def story() -> None:
        watcher = watcher_of(local_store)
        await watcher.poll()

        def silent(key: str) -> None:
            raise StoreUnavailableError("no route")

        with monkeypatch.context() as patch:
            patch.setattr(local_store, "head", silent)
            assert not await watcher.poll()
        assert "no route" in (watcher.problem or "")
        assert (await watcher.view(None)).version == 1
        await watcher.poll()
        assert watcher.problem is None

    asyncio.run(story())


def test_a_poll_costs_one_request(local_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    publish_tasks(local_store, {"a": ("red",)})
    asked: list[str] = []

    def counted(name: str) -> Any:
        own = getattr(local_store, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            asked.append(name)
            return own(*args, **kwargs)

        return call

    async def story() -> None:
        watcher = watcher_of(local_store)
        await watcher.poll()
        for name in ("head", "get", "list", "stream"):
            monkeypatch.setattr(local_store, name, counted(name))
        await watcher.poll()

    asyncio.run(story())
    assert asked == ["head"]


def test_a_watcher_that_gc_overtook_finds_the_newest_by_listing(local_store: Store) -> None:
    publish_tasks(local_store, {"a": ("red",)})

    async def story() -> None:
        watcher = watcher_of(local_store)
        await watcher.poll()
        for name in ("b", "c"):
            publish_tasks(local_store, {name: ("blue",)})
        for number in (1, 2):  # the next number that it would probe for is gone
            local_store.delete(manifest_key(number))
        assert not await watcher.poll()
        assert await watcher.poll(listing=True)
        assert (await watcher.view(None)).version == 3

    asyncio.run(story())


def test_older_versions_can_be_pinned_until_gc_takes_them(local_store: Store) -> None:
    for name in ("a", "b", "c"):
        publish_tasks(local_store, {name: ("red",)})

    async def story() -> None:
        watcher = watcher_of(local_store)
        await watcher.poll()
        assert list((await watcher.view(2)).tasks) == ["a", "b"]
        assert await watcher.view(3) is watcher.current
        with pytest.raises(UnknownVersionError, match="no version 9"):
            await watcher.view(9)
        local_store.delete(manifest_key(1))
        with pytest.raises(VersionGoneError):
            await watcher.view(1)

    asyncio.run(story())


def test_a_version_whose_blobs_gc_takes_while_it_is_read_gives_way_to_the_newest(local_store: Store) -> None:
    publish_tasks(local_store, {"a": ("red",)})
    taken: list[str] = []

    class Overtaken(type(local_store)):  # type: ignore[misc]
        def get(self, key: str, **options: Any) -> bytes:
            if key.startswith("blobs/") and armed and not taken:
                taken.append(key)
                edits.remove_task(Versions(local_store), "b")
                collect(Versions(local_store), Policy(keep=1, keep_days=0))
                assert local_store.head(key) is None, "the blob went between manifest and blob"
            body: bytes = super().get(key, **options)
            return body

    armed = False

    async def story() -> None:
        nonlocal armed
        watcher = watcher_of(Overtaken(local_store.url))
        await watcher.poll()
        publish_tasks(local_store, {"b": ("blue",)})
        armed = True
        assert await watcher.poll()
        assert taken
        assert list((await watcher.view(None)).tasks) == ["a"]
        assert watcher.problem is None

    asyncio.run(story())


@pytest.mark.parametrize("damaged", [False, True])
def test_a_pinned_version_whose_blobs_are_gone_is_gone_and_a_kept_one_is_damaged(
    damaged: bool, local_store: Store
) -> None:
    for name in ("a", "b"):
        publish_tasks(local_store, {name: ("red",)})
    edits.remove_task(Versions(local_store), "b")
    second = Versions(local_store).read(2)
    body = local_store.get(manifest_key(2))

    async def story() -> None:
        watcher = watcher_of(local_store)
        await watcher.poll()
        if damaged:
            local_store.delete(second.state.tasks["b"].record.key)
        else:
            collect(Versions(local_store), Policy(keep=1, keep_days=0))
            local_store.put_if_absent(manifest_key(2), body)  # as for a request that read it just before
        with pytest.raises(BlobNotFoundError if damaged else VersionGoneError):
            await watcher.view(2)

    asyncio.run(story())


def test_an_emptied_store_is_reported_and_its_version_is_served_on(local_store: Store, tmp_path: Path) -> None:
    publish_tasks(local_store, {"a": ("red",)})

    async def story() -> None:
        watcher = watcher_of(local_store)
        await watcher.poll()
        local_store.delete(manifest_key(1))
        assert not await watcher.poll(listing=True)
        assert "emptied" in (watcher.problem or "")
        assert (await watcher.view(None)).version == 1

    asyncio.run(story())


def test_the_newest_readable_version_is_found_below_damaged_ones(local_store: Store) -> None:
    with pytest.raises(UnknownVersionError, match="condu run"):
        newest_readable(Versions(local_store))
    for name in ("a", "b"):
        publish_tasks(local_store, {name: ("red",)})
    damage_version(local_store, 2)
    manifest, problem = newest_readable(Versions(local_store))
    assert manifest.version == 1
    assert problem is not None
