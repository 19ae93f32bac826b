"""A store's address: it opens the store from anywhere, and prints no secrets."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from fusion.store import S3Options
from fusion.store.address import StoreAddress


def test_it_opens_the_store_and_its_cache_in_another_process(tmp_path: Path) -> None:
    address = StoreAddress(str(tmp_path / "store"), cache_folder=tmp_path / "cache")
    travelled = pickle.loads(pickle.dumps(address))  # noqa: S301 (our own bytes, as Ray sends them)
    assert travelled == address
    travelled.open().put_if_absent("a", b"x")
    assert travelled.open_cache().store.get("a") == b"x"


def test_a_relative_folder_means_the_same_from_another_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    resolved = StoreAddress("store").resolved()
    monkeypatch.chdir("/")
    assert resolved.open().url == (tmp_path / "store").as_uri()
    assert resolved.resolved() == resolved


def test_it_prints_no_credentials_of_an_endpoint() -> None:
    address = StoreAddress("s3://bucket/prefix", S3Options(endpoint_url="http://user:secret@minio:9000"))
    assert str(address) == "s3://bucket/prefix at http://minio:9000"
    assert "secret" not in repr(address)
