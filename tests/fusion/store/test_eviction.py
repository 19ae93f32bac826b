"""The node cache stays below its limit, keeps what is used, and takes nothing from under a reader."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fusion.store import Store, open_store
from fusion.store.blobs import BlobRef, put_json
from fusion.store.eviction import IN_USE_S, evict, touch
from fusion.store.node_cache import NodeCache


class Remote:
    """A store without files of its own, as S3 is."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.url = store.url
        self.num_streamed = 0

    def local_path(self, key: str) -> None:
        return None

    def stream(self, key: str) -> object:
        self.num_streamed += 1
        return self._store.stream(key)


def remote_with(tmp_path: Path, count: int) -> tuple[Remote, list[BlobRef]]:
    store = open_store(f"file://{tmp_path}/store")
    refs = [put_json(store, {"blob": number, "filler": "x" * 1000}, nonce="0" * 16) for number in range(count)]
    return Remote(store), refs


def unused_for(path: Path, seconds: float) -> None:
    os.utime(path, (time.time() - seconds,) * 2)


def test_what_was_unused_for_longest_is_deleted_and_comes_back_when_it_is_asked_for(tmp_path: Path) -> None:
    store, refs = remote_with(tmp_path, 4)
    size = refs[0].bytes
    cache = NodeCache(store, tmp_path / "cache", limit_bytes=3 * size)  # type: ignore[arg-type]
    paths = [cache.path(ref) for ref in refs[:3]]
    for path, hours in zip(paths, (3, 5, 4), strict=True):
        unused_for(path, hours * 3600)
    cache.path(refs[1])  # asked for again: the oldest is now the third
    cache.path(refs[3])
    assert [path.exists() for path in paths] == [True, True, False]
    streamed = store.num_streamed
    assert cache.path(refs[2]).read_bytes()
    assert store.num_streamed == streamed + 1


def test_what_is_in_use_stays_even_above_the_limit(tmp_path: Path) -> None:
    store, refs = remote_with(tmp_path, 3)
    cache = NodeCache(store, tmp_path / "cache", limit_bytes=1)  # type: ignore[arg-type]
    paths = [cache.path(ref) for ref in refs]
    assert all(path.exists() for path in paths)
    unused_for(paths[0], IN_USE_S + 1)
    assert evict(tmp_path / "cache", 1) == refs[0].bytes
    assert [path.exists() for path in paths] == [False, True, True]


def test_a_mapped_copy_stays_readable_after_it_is_deleted(tmp_path: Path) -> None:
    store, (ref, *_) = remote_with(tmp_path, 1)
    path = NodeCache(store, tmp_path / "cache").path(ref)  # type: ignore[arg-type]
    with path.open("rb") as reader:
        unused_for(path, 1e6)
        assert evict(tmp_path / "cache", 0) == ref.bytes
        assert not path.exists()
        assert len(reader.read()) == ref.bytes


def test_a_killed_download_is_cleaned_up_and_a_running_one_is_not(tmp_path: Path) -> None:
    store, refs = remote_with(tmp_path, 1)
    copy = NodeCache(store, tmp_path / "cache").path(refs[0])  # type: ignore[arg-type]
    dead, alive = copy.with_name(".dead-1"), copy.with_name(".alive-1")
    dead.write_bytes(b"x")
    alive.write_bytes(b"x")
    unused_for(dead, 1e5)
    evict(tmp_path / "cache", 0)
    assert (dead.exists(), alive.exists()) == (False, True)


def test_no_limit_given_is_half_of_the_disk(tmp_path: Path) -> None:
    store, refs = remote_with(tmp_path, 1)
    path = NodeCache(store, tmp_path / "cache").path(refs[0])  # type: ignore[arg-type]
    unused_for(path, 1e6)
    assert evict(tmp_path / "cache", None) == 0
    assert touch(tmp_path / "cache", path)
    assert time.time() - path.stat().st_mtime < 60


@pytest.mark.processes
def test_readers_beside_an_evicting_process_always_find_their_file(tmp_path: Path) -> None:
    """Copies age at once here, so that the other process deletes them between any two reads."""
    store, refs = remote_with(tmp_path, 8)
    folder = tmp_path / "cache"
    cache = NodeCache(store, folder, limit_bytes=10**9)  # type: ignore[arg-type]
    for ref in refs:
        cache.path(ref)
    code = (
        "import sys, time; from pathlib import Path; from fusion.store.eviction import evict\n"
        "end = time.monotonic() + 3\n"
        "freed = 0\n"
        "while time.monotonic() < end: freed += evict(Path(sys.argv[1]), 0)\n"
        "print(freed)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True) as other:
        while other.poll() is None:
            for ref in refs:
                path = cache.path(ref)
                assert len(path.read_bytes()) == ref.bytes
                unused_for(path, IN_USE_S + 1)
        assert other.stdout is not None
        assert int(other.stdout.read()) > 0
