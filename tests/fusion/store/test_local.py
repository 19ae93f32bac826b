"""What only a folder can do wrong: be killed between two steps, be full, not be a folder, hold foreign files."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusion.errors import BlobNotFoundError, StoreAccessError, StoreError, StoreUnavailableError
from fusion.store.local import LocalStore

KILLED_BEFORE_THE_LINK = """
import os, signal, sys
from pathlib import Path
from fusion.store import open_store
store = open_store(sys.argv[1])
os.link = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
body = b"x" * 100_000
if sys.argv[2] == "scratch":
    (store.scratch / "write-1").write_bytes(body)
    body = store.scratch / "write-1"
store.put_if_absent("versions/00000001.json", body)
"""


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(f"file://{tmp_path}/store")


def failing(number: int):  # type: ignore[no-untyped-def]
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.processes
@pytest.mark.parametrize("body", ["bytes", "scratch"])
def test_a_writer_killed_before_the_link_leaves_no_object(store: LocalStore, body: str) -> None:
    command = [sys.executable, "-c", KILLED_BEFORE_THE_LINK, store.url, body]
    assert subprocess.run(command, cwd=Path(__file__).parents[3]).returncode == -signal.SIGKILL
    assert len(list(store.scratch.iterdir())) == 1, "only the temporary file is left"
    assert store.head("versions/00000001.json") is None
    assert list(store.list("")) == []
    assert store.put_if_absent("versions/00000001.json", b"next") is True
    assert store.get("versions/00000001.json") == b"next"


def test_the_body_is_fsynced_before_the_link_and_every_folder_after_it(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    link, fsync = os.link, os.fsync

    def watched_fsync(handle: int) -> None:
        events.append(os.readlink(f"/proc/self/fd/{handle}"))
        fsync(handle)

    def watched_link(source: Path, target: Path) -> None:
        events.append("link")
        link(source, target)

    store.put_if_absent("blobs/ab/first", b"")
    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(os, "link", watched_link)
    store.put_if_absent("blobs/ab/second", b"x")
    at = events.index("link")
    root = str(store.root)
    assert events[:at][-1].startswith(f"{root}/tmp/put-")
    assert events[at + 1 :][:3] == [f"{root}/blobs/ab", f"{root}/blobs", root]
    events.clear()
    assert store.put_if_absent("blobs/ab/second", b"y") is False
    assert f"{root}/blobs/ab" in events, "the loser builds on the winner's object, so that must be durable too"


def test_nothing_stays_in_scratch(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.put_if_absent("a", b"x")
    store.put_if_absent("a", b"y")
    monkeypatch.setattr(os, "link", failing(errno.EIO))
    with pytest.raises(StoreUnavailableError):
        store.put_if_absent("b", b"x")
    assert list(store.scratch.iterdir()) == []


def test_a_file_in_scratch_is_linked_not_copied_and_becomes_readable(store: LocalStore) -> None:
    handle, name = tempfile.mkstemp(dir=store.scratch)
    os.close(handle)
    store.put_if_absent("blobs/ab/linked", Path(name))
    stored = (store.root / "blobs/ab/linked").stat()
    assert stored.st_ino == Path(name).stat().st_ino
    assert stored.st_mode & 0o777 == 0o444 & store.root.stat().st_mode, "mkstemp's 0600 would lock other users out"


def test_a_link_into_scratch_is_not_followed_by_a_link(store: LocalStore, tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"x")
    (store.scratch / "alias").symlink_to(tmp_path / "real")
    store.put_if_absent("a", store.scratch / "alias")
    (tmp_path / "real").write_bytes(b"changed")
    assert store.get("a") == b"x"


def test_objects_are_files_of_their_own(store: LocalStore) -> None:
    store.put_if_absent("blobs/ab/one", b"x")
    path = store.local_path("blobs/ab/one")
    assert path == store.root / "blobs/ab/one"


@pytest.mark.parametrize("place", ["file", "file/below", "dangling"])
def test_a_store_that_can_not_be_a_folder_is_refused_by_every_call(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    store = LocalStore(f"file://{tmp_path}/{place}")
    for call in (
        lambda: store.put_if_absent("a", b"x"),
        lambda: store.get("a"),
        lambda: list(store.stream("a")),
        lambda: store.head("a"),
        lambda: list(store.list("")),
        lambda: store.delete("a"),
        lambda: store.scratch,
    ):
        with pytest.raises(StoreAccessError, match=r"file://.*check the store's URL"):
            call()


def test_a_place_where_nothing_can_be_created_is_refused() -> None:
    with pytest.raises(StoreAccessError, match="check the store's URL"):  # not even root can create a folder there
        LocalStore("file:///proc/condu").put_if_absent("a", b"x")


@pytest.mark.parametrize(
    ("number", "kind", "advice"),
    [
        (errno.EACCES, StoreAccessError, "permission"),
        (errno.EROFS, StoreAccessError, "read-only"),
        (errno.ENOSPC, StoreAccessError, "disk is full"),
        (errno.EDQUOT, StoreAccessError, "quota"),
        (errno.EPERM, StoreAccessError, "hard links"),
        (errno.EIO, StoreUnavailableError, "does not answer"),
        (errno.EMFILE, StoreError, "check the folder"),
    ],
)
def test_errors_of_the_system_become_advice(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[StoreError], advice: str
) -> None:
    monkeypatch.setattr(os, "link", failing(number))
    with pytest.raises(kind, match=advice) as caught:
        store.put_if_absent("blobs/ab/one", b"x")
    assert f"{store.url}/blobs/ab/one" in str(caught.value)
    assert isinstance(caught.value.__cause__, OSError)


def test_a_key_is_either_an_object_or_a_prefix_of_others(store: LocalStore) -> None:
    store.put_if_absent("a/b", b"x")
    with pytest.raises(StoreError, match="other objects"):
        store.put_if_absent("a", b"x")
    with pytest.raises(StoreError, match="a file where a folder is needed"):
        store.put_if_absent("a/b/c", b"x")
    with pytest.raises(BlobNotFoundError):
        store.get("a")
    store.delete("a")
    assert [info.key for info in store.list("")] == ["a/b"]


def test_foreign_files_are_not_listed(store: LocalStore) -> None:
    store.put_if_absent("a/b", b"x")
    (store.root / "tmp" / "put-1").touch()
    (store.root / "a" / "back\\slash").touch()
    (store.root / os.fsdecode(b"a/\xff\xfe")).touch()
    (store.root / "a" / "dangling").symlink_to("nowhere")
    assert [info.key for info in store.list("")] == ["a/b"]


parts = st.text(st.sampled_from("ab+-.0/é"), min_size=1, max_size=6)


@given(names=st.sets(parts, max_size=12), prefix=parts | st.just(""), after=parts | st.just(""))
def test_a_listing_is_the_sorted_filter_of_all_keys(names: set[str], prefix: str, after: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = LocalStore(f"file://{folder}/store")
        kept = []
        for name in sorted(names):
            path = store.root / name
            try:
                store.head(name)  # refuses a bad key
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch(exist_ok=False)
            except (StoreError, OSError):
                continue  # a bad key, or a prefix of another key
            kept.append(name)
        if prefix.startswith("/") or "//" in prefix or {".", ".."} & set(prefix.split("/")[:-1]):
            return  # no key can start with it
        found = [info.key for info in store.list(prefix, start_after=after)]
        assert found == sorted((n for n in kept if n.startswith(prefix) and n > after), key=str.encode)
