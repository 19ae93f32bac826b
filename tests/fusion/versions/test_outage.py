"""The S3 server stops while a publisher is at work, and comes back or does not. These tests have their own server."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fusion.errors import StoreUnavailableError
from fusion.fuse import ExpertToFuse, FuseResult, fuse_experts
from fusion.store import open_store
from fusion.store.node_cache import NodeCache
from fusion.versions import outage
from fusion.versions.bases import Base
from fusion.versions.history import Versions
from tests.fusion.faults import StruckStore, read_whole
from tests.fusion.vectors import random_base, random_expert
from tests.s3_server import S3Server

pytestmark = pytest.mark.s3
PUT = "put_if_absent"
SIGNED: dict[str, Any] = {"name": "signed", "bits": 2}


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with S3Server() as own:
        yield own


class Publisher:
    """A publisher that is about to fuse a second task into a store on a server that may stop."""

    def __init__(self, server: S3Server, folder: Path) -> None:
        self.server, self.folder = server, folder
        self.store = open_store(f"s3://{server.bucket}/{secrets.token_hex(6)}")
        self.base: Base
        self.base, path = random_base(folder, self.store)
        self.fuse(self.store, random_expert(folder, path, "before", seed=1))
        self.expert = random_expert(folder, path, "after", seed=2)

    def fuse(self, store: Any, expert: ExpertToFuse) -> FuseResult:
        return fuse_experts(NodeCache(store, self.folder / "cache"), self.base, [expert], mode=SIGNED)


@pytest.fixture
def publisher(server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Publisher]:
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    for name, value in server.env.items():
        monkeypatch.setenv(name, value)
    yield Publisher(server, tmp_path)
    if server.pid is None:
        server.start()


@pytest.mark.parametrize("moment", ["blobs/", pytest.param("versions/", marks=pytest.mark.soak)])
def test_a_server_that_is_away_for_ten_seconds_delays_a_publisher(
    moment: str, publisher: Publisher, server: S3Server, caplog: pytest.LogCaptureFixture
) -> None:
    back = threading.Timer(10, server.start)

    def stop() -> None:
        server.stop()
        back.start()

    store = StruckStore(publisher.store, at=(PUT, moment), strike=stop)
    result = publisher.fuse(store, publisher.expert)
    back.join()
    assert store.num_strikes == 1
    assert result.manifest.version == 2
    assert any("the store is away" in record.message for record in caplog.records)
    assert Versions(publisher.store).all_numbers() == [1, 2]
    assert set(read_whole(publisher.store, publisher.folder, result.manifest)) == {"before", "after"}


def test_a_server_that_is_gone_for_good_ends_a_publisher_with_an_error(
    publisher: Publisher, server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outage, "OUTAGE_S", 3.0)
    newest = Versions(publisher.store).newest()
    store = StruckStore(publisher.store, at=(PUT, "blobs/"), strike=server.stop)
    with pytest.raises(StoreUnavailableError, match=rf"{server.endpoint_url}.*check `endpoint_url`, the network"):
        publisher.fuse(store, publisher.expert)
    server.start()
    assert Versions(publisher.store).newest() == newest
    result = publisher.fuse(publisher.store, publisher.expert)
    assert result.fused == ("after",)
    assert result.manifest.version == 2
    assert set(read_whole(publisher.store, publisher.folder, result.manifest)) == {"before", "after"}
