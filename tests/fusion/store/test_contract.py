"""The protocol's promises, kept by both stores: a local folder and a real S3 server."""

from __future__ import annotations

import hashlib
import os
import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fusion.errors import BlobNotFoundError, StoreError
from fusion.store import Store

BAD_KEYS = [
    "", "/", "/etc/passwd", "..", "../up", "a/../b", "a/..", ".", "a/./b", "a//b", "a/", "a\\b", "a\0b", "a\nb",
    "tmp", "tmp/x", "x" * 256, "long/" * 210 + "x", "\ud800",
]  # fmt: skip


def keys(store: Store, prefix: str = "", start_after: str = "") -> list[str]:
    return [info.key for info in store.list(prefix, start_after=start_after)]


def test_an_object_comes_back_as_it_was_written(any_store: Store) -> None:
    body = os.urandom(100_000)
    assert any_store.put_if_absent("blobs/ab/one", body) is True
    assert any_store.get("blobs/ab/one") == body


def test_the_second_writer_loses_and_changes_nothing(any_store: Store) -> None:
    assert any_store.put_if_absent("versions/00000001.json", b"first") is True
    assert any_store.put_if_absent("versions/00000001.json", b"second") is False
    assert any_store.get("versions/00000001.json") == b"first"


def test_a_file_is_stored_and_stays_where_it_is(any_store: Store, tmp_path: Path) -> None:
    path = tmp_path / "expert.safetensors"
    path.write_bytes(b"weights" * 1000)
    assert any_store.put_if_absent("experts/a.safetensors", path) is True
    assert any_store.get("experts/a.safetensors") == b"weights" * 1000 == path.read_bytes()
    assert any_store.put_if_absent("experts/a.safetensors", path) is False


def test_a_file_in_scratch_is_stored_and_may_be_removed(any_store: Store) -> None:
    assert any_store.scratch.is_dir()
    path = any_store.scratch / f"write-{os.getpid()}"
    path.write_bytes(b"in scratch")
    assert any_store.put_if_absent("blobs/ab/scratch", path) is True
    path.unlink()
    assert any_store.get("blobs/ab/scratch") == b"in scratch"


def test_overwriting_ones_own_file_does_not_change_the_object(any_store: Store, tmp_path: Path) -> None:
    path = tmp_path / "base.safetensors"
    path.write_bytes(b"as imported")
    any_store.put_if_absent("bases/one.safetensors", path)
    with open(path, "r+b") as file:
        file.write(b"trained on!")
    assert any_store.get("bases/one.safetensors") == b"as imported"


def test_a_missing_file_is_named(any_store: Store, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"gone\.bin can't be stored"):
        any_store.put_if_absent("blobs/ab/gone", tmp_path / "gone.bin")
    assert keys(any_store) == []


def test_ranges_are_cut_as_python_cuts_them(any_store: Store) -> None:
    body = bytes(range(256))
    any_store.put_if_absent("blobs/ab/range", body)
    for start, stop in [
        (0, 0),
        (0, 1),
        (10, 20),
        (255, 256),
        (7, None),
        (250, 999),
        (256, None),
        (256, 300),
        (900, 999),
    ]:
        assert any_store.get("blobs/ab/range", start=start, stop=stop) == body[start:stop], (start, stop)
    for start, stop in [(-1, None), (5, 4)]:
        with pytest.raises(StoreError, match="0 <= start <= stop"):
            any_store.get("blobs/ab/range", start=start, stop=stop)


def test_a_stream_yields_everything_in_chunks_of_at_most_the_requested_size(any_store: Store) -> None:
    body = os.urandom(3_000_001)
    any_store.put_if_absent("blobs/ab/stream", body)
    for chunk_bytes in (100_000, 8 << 20):
        chunks = list(any_store.stream("blobs/ab/stream", chunk_bytes=chunk_bytes))
        assert b"".join(chunks) == body
        assert all(0 < len(chunk) <= chunk_bytes for chunk in chunks)


def test_an_empty_object_is_an_object(any_store: Store, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    bodies: dict[str, bytes | Path] = {"attempts/a": b"", "attempts/b": tmp_path / "empty"}
    for key, body in bodies.items():
        assert any_store.put_if_absent(key, body) is True
        assert any_store.put_if_absent(key, b"x") is False
        assert any_store.get(key) == b""
        assert list(any_store.stream(key)) == []
        assert [info.bytes for info in any_store.list(key)] == [0]
        assert any_store.head(key) is not None
    assert keys(any_store) == ["attempts/a", "attempts/b"]


def test_head_returns_size_and_time_or_none(any_store: Store) -> None:
    before = time.time()
    any_store.put_if_absent("blobs/ab/head", b"12345")
    head = any_store.head("blobs/ab/head")
    assert head is not None
    assert (head.key, head.bytes) == ("blobs/ab/head", 5)
    assert before - 2 <= head.modified <= time.time() + 2  # S3 has whole seconds
    assert [head] == list(any_store.list("blobs/"))
    assert any_store.head("blobs/ab/other") is None
    assert any_store.head("blobs/ab") is None, "a folder is not an object"


def test_what_is_missing_is_not_found(any_store: Store) -> None:
    any_store.put_if_absent("blobs/ab/one", b"x")
    for key in ("nothing", "blobs/ab/two", "blobs/ab", "blobs/ab/one/below"):
        with pytest.raises(BlobNotFoundError, match=key):
            any_store.get(key)
        with pytest.raises(BlobNotFoundError):
            any_store.get(key, start=3, stop=9)
        with pytest.raises(BlobNotFoundError):
            any_store.get(key, start=3, stop=3)
        with pytest.raises(BlobNotFoundError):
            next(any_store.stream(key))
        assert any_store.head(key) is None
        assert any_store.local_path(key) is None


def test_a_store_without_writes_is_empty(any_store: Store) -> None:
    assert keys(any_store) == [] == keys(any_store, "versions/")
    assert any_store.head("versions/00000001.json") is None
    any_store.delete("versions/00000001.json")


def test_a_listing_has_the_byte_order_of_whole_keys(any_store: Store) -> None:
    names = [
        "e/id.json",
        "e/id/x",
        "e/id/y/z",
        "e/id-2/x",
        "e/id+b",
        "e/id0",
        "e/Z",
        "e/é",
        "e/漢",
        "e/a b%20c",
        "e2",
        "d/x",
    ]
    for name in names:
        assert any_store.put_if_absent(name, b"x")
    assert keys(any_store) == sorted(names, key=str.encode)
    for prefix in ["e", "e/", "e/id", "e/id/", "e/id/y", "e/i", "x", "e/é", "e/a b%", "t"]:
        assert keys(any_store, prefix) == sorted((n for n in names if n.startswith(prefix)), key=str.encode), prefix
    for after in [*names, "e/", "e/id", "e/id/", "e/id-", "a", "z", "e/id/y/"]:
        want = sorted((n for n in names if n.startswith("e/") and n > after), key=str.encode)
        assert keys(any_store, "e/", after) == want, after


def test_a_listing_goes_past_a_thousand_keys(any_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # 1,005 objects in a test need not outlive a power cut
    names = [f"blobs/{number % 7:02x}/{number:05d}" for number in range(1005)]
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(lambda name: any_store.put_if_absent(name, b"x"), names))
    assert keys(any_store, "blobs/") == sorted(names)
    assert keys(any_store, "blobs/", sorted(names)[1001]) == sorted(names)[1002:]


def test_a_deleted_object_is_gone_and_deleting_it_again_is_not_an_error(any_store: Store) -> None:
    any_store.put_if_absent("blobs/ab/one", b"x")
    any_store.delete("blobs/ab/one")
    any_store.delete("blobs/ab/one")
    assert any_store.head("blobs/ab/one") is None
    assert keys(any_store) == []
    assert any_store.put_if_absent("blobs/ab/one", b"again") is True


@pytest.mark.parametrize("key", BAD_KEYS)
def test_a_key_that_could_leave_the_store_is_refused_by_every_call(any_store: Store, key: str) -> None:
    calls = [
        lambda: any_store.get(key),
        lambda: list(any_store.stream(key)),
        lambda: any_store.head(key),
        lambda: any_store.put_if_absent(key, b"x"),
        lambda: any_store.delete(key),
        lambda: any_store.local_path(key),
    ]
    for call in calls:
        with pytest.raises(StoreError, match="is not a valid key"):
            call()


@pytest.mark.parametrize("prefix", ["/", "../", "a/../b", "a//", "\\", "tmp/"])
def test_a_prefix_that_no_key_can_start_with_is_refused(any_store: Store, prefix: str) -> None:
    with pytest.raises(StoreError, match=r"no key in .* can start with"):
        any_store.list(prefix)


def test_of_sixteen_threads_racing_for_a_key_one_wins(any_store: Store) -> None:
    for round_number in range(20 if any_store.url.startswith("file:") else 2):  # SeaweedFS waits seconds for its lock
        key, barrier = f"versions/{round_number:08d}.json", threading.Barrier(16)

        def publish(number: int, key: str = key, barrier: threading.Barrier = barrier) -> bool:
            barrier.wait()
            return any_store.put_if_absent(key, b"%02d" % number)

        with ThreadPoolExecutor(16) as pool:
            won = list(pool.map(publish, range(16)))
        assert won.count(True) == 1
        assert any_store.get(key) == b"%02d" % won.index(True)


def test_readers_never_see_half_an_object(any_store: Store) -> None:
    body = os.urandom(12 << 20)
    done = threading.Event()
    seen: set[tuple[str, int | None]] = set()

    def read() -> None:
        while not done.is_set():
            head = any_store.head("blobs/ab/big")
            seen.add(("head", head.bytes if head else None))
            seen.update(("list", info.bytes) for info in any_store.list("blobs/"))
            if head:
                seen.add(("hash", int(hashlib.sha256(any_store.get("blobs/ab/big")).hexdigest()[:8], 16)))
                return

    reader = threading.Thread(target=read)
    reader.start()
    any_store.put_if_absent("blobs/ab/big", body)
    time.sleep(0.05)
    reader.join(timeout=30)
    done.set()
    assert ("hash", int(hashlib.sha256(body).hexdigest()[:8], 16)) in seen
    assert {size for kind, size in seen if kind != "hash"} <= {None, len(body)}


def test_a_store_is_pickled_as_its_url(any_store: Store) -> None:
    any_store.put_if_absent("blobs/ab/one", b"x")
    data = pickle.dumps(any_store)
    assert len(data) < 700
    copy = pickle.loads(data)  # noqa: S301 - our own bytes
    assert copy.url == any_store.url
    assert copy.get("blobs/ab/one") == b"x"


@pytest.mark.processes
def test_a_store_works_on_both_sides_of_a_fork(any_store: Store) -> None:
    any_store.put_if_absent("blobs/ab/parent", b"parent")
    child = os.fork()
    if child == 0:
        try:
            ok = any_store.get("blobs/ab/parent") == b"parent" and any_store.put_if_absent("blobs/ab/child", b"child")
            os._exit(0 if ok else 1)
        finally:
            os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    assert any_store.get("blobs/ab/child") == b"child"
    assert any_store.get("blobs/ab/parent") == b"parent"
