"""The node cache while files are deleted between a check and a read."""

from __future__ import annotations

from pathlib import Path

import pytest

from fusion.errors import BlobNotFoundError
from fusion.store import open_store
from fusion.store.blobs import BlobRef, put_json
from fusion.store.node_cache import NodeCache
from fusion.tensors import sha256_file


def delete_before_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(path: Path) -> str:
        path.unlink()
        return sha256_file(path)

    monkeypatch.setattr("fusion.store.node_cache.sha256_file", gone)


def test_an_object_that_gc_deletes_while_it_is_verified_is_reported_as_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(f"file://{tmp_path}/store")
    ref = put_json(store, {"some": "object"}, nonce="0" * 16)
    delete_before_reading(monkeypatch)
    with pytest.raises(BlobNotFoundError, match=ref.key):
        NodeCache(store, tmp_path / "cache").path(ref)


def test_a_deleted_or_damaged_copy_is_fetched_again(
    s3_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(s3_url)
    ref: BlobRef = put_json(store, {"some": "object"}, nonce="0" * 16)

    def read() -> bytes:
        return NodeCache(store, tmp_path / "cache").path(ref).read_bytes()

    copy = NodeCache(store, tmp_path / "cache").path(ref)
    copy.write_bytes(copy.read_bytes().replace(b"some", b"SOME"))
    assert b"some" in read()
    copy.write_bytes(b"")
    assert b"some" in read()
    delete_before_reading(monkeypatch)
    assert b"some" in read()
