"""Publishers, collections and readers at once on one store: all publish, and nothing that is kept is lost."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fusion.decouple import decoupled_tensors
from fusion.errors import BlobNotFoundError, DamagedBlobError, StateDictError, VersionGoneError
from fusion.fuse import fuse_experts
from fusion.store import ObjectInfo, Store, open_store
from fusion.store.node_cache import NodeCache
from fusion.versions import edits
from fusion.versions.gc import Policy, collect
from fusion.versions.history import Versions, manifest_key
from fusion.versions.manifest import Manifest
from fusion.versions.publish import Draft, publish
from fusion.versions.verify import verify
from tests.fusion.faults import flip_a_bit
from tests.fusion.vectors import cache_of, publish_each, random_base, random_expert

ROOT = Path(__file__).resolve().parents[3]
ITERATIVE = {"name": "iterative"}
ALL_OLD = Policy(keep=1, keep_days=0)


class Interrupted:
    """A store that lets something else happen once, just before a call about a key with a given prefix."""

    def __init__(self, store: Store, call: str, prefix: str, meanwhile: Callable[[], object]) -> None:
        self._store = store
        self._call = call
        self._prefix = prefix
        self._meanwhile: Callable[[], object] | None = meanwhile

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._store, name)
        if name != self._call:
            return found

        def call(key: str, *args: Any, **kwargs: Any) -> Any:
            meanwhile, matches = self._meanwhile, key.startswith(self._prefix)
            if meanwhile and matches:
                self._meanwhile = None
                meanwhile()
            return found(key, *args, **kwargs)

        return call

    @property
    def happened(self) -> bool:
        return self._meanwhile is None

    def list(self, prefix: str, *, start_after: str = "") -> Iterator[ObjectInfo]:
        return self._store.list(prefix, start_after=start_after)


def assert_whole(store: Store, tasks: set[str]) -> Manifest:
    newest = Versions(store).newest()
    assert newest is not None
    assert set(newest.state.tasks) == tasks
    assert verify(Versions(store)).findings == ()
    return newest


@pytest.mark.parametrize(
    ("call", "prefix"), [("put_if_absent", "blobs/"), ("head", "blobs/"), ("put_if_absent", "versions/")]
)
def test_a_publisher_whose_blobs_gc_deleted_writes_them_again(
    call: str, prefix: str, local_store: Store, tmp_path: Path
) -> None:
    publish_each(tmp_path, local_store, ["a", "b"], mode=ITERATIVE)
    base, path = random_base(tmp_path, local_store)
    store = Interrupted(local_store, call, prefix, lambda: collect(Versions(local_store), ALL_OLD))
    cache = NodeCache(store, tmp_path / "cold")  # type: ignore[arg-type]
    result = fuse_experts(cache, base, [random_expert(tmp_path, path, "c", seed=9)], mode=ITERATIVE)
    assert store.happened
    assert result.manifest.version == 4
    assert result.manifest == assert_whole(local_store, {"a", "b", "c"})


@pytest.mark.parametrize("mode", [ITERATIVE, {"name": "signed", "bits": 2}], ids=lambda mode: mode["name"])
def test_a_publisher_whose_parent_gc_deletes_while_it_is_verified_builds_on_the_next_version(
    mode: dict[str, Any], local_store: Store, tmp_path: Path
) -> None:
    (parent,) = publish_each(tmp_path, local_store, ["a"], mode=mode)
    base, path = random_base(tmp_path, local_store)

    def others_publish_and_collect() -> None:
        publish_each(tmp_path, local_store, ["b"], mode=mode, seed=4)
        edits.remove_task(Versions(local_store), "a")  # so that nothing names its profile any more
        collect(Versions(local_store), ALL_OLD)

    taken = next(iter(parent.state.shared.values())).key
    store = Interrupted(local_store, "local_path", taken, others_publish_and_collect)
    cache = NodeCache(store, tmp_path / "cold")  # type: ignore[arg-type]
    result = fuse_experts(cache, base, [random_expert(tmp_path, path, "c", seed=9)], mode=mode)
    assert store.happened
    assert local_store.head(taken) is None
    assert result.manifest == assert_whole(local_store, {"b", "c"})


def test_a_publisher_that_slept_while_its_number_was_used_and_freed_still_publishes(
    local_store: Store, tmp_path: Path
) -> None:
    publish_each(tmp_path, local_store, ["a"], mode=ITERATIVE)
    base, path = random_base(tmp_path, local_store)

    def others_publish_and_collect() -> None:
        publish_each(tmp_path, local_store, ["b", "c"], mode=ITERATIVE, seed=4)
        collect(Versions(local_store), ALL_OLD)
        assert Versions(local_store).all_numbers() == [3, 4], "number 2 is free again"

    store = Interrupted(local_store, "put_if_absent", "versions/", others_publish_and_collect)
    cache = NodeCache(store, tmp_path / "cold")  # type: ignore[arg-type]
    result = fuse_experts(cache, base, [random_expert(tmp_path, path, "late", seed=9)], mode=ITERATIVE)
    assert store.happened
    assert result.manifest.version == 5
    assert result.manifest == assert_whole(local_store, {"a", "b", "c", "late"})
    assert collect(Versions(local_store), Policy()).versions == (2,), "what it left is garbage"


def test_a_collection_that_slept_while_its_number_was_used_and_freed_deletes_nothing_of_later_versions(
    local_store: Store, tmp_path: Path
) -> None:
    publish_each(tmp_path, local_store, ["a", "b"], mode=ITERATIVE)
    base, path = random_base(tmp_path, local_store)
    # a publisher at work: its blobs are on the sleeper's list, its version is not
    expert = random_expert(tmp_path, path, "c", seed=9)
    slow: list[Callable[[], object]] = []

    def sleeper() -> None:
        def others() -> None:
            slow.pop()()
            collect(Versions(local_store), ALL_OLD)

        store = Interrupted(local_store, "put_if_absent", "versions/", others)
        collect(Versions(store), ALL_OLD)  # type: ignore[arg-type]
        assert store.happened

    committing, listed = threading.Event(), threading.Event()

    def wait() -> None:
        committing.set()
        assert listed.wait(30)

    publisher = threading.Thread(
        target=lambda: fuse_experts(
            NodeCache(Interrupted(local_store, "put_if_absent", "versions/", wait), tmp_path / "cold"),  # type: ignore[arg-type]
            base,
            [expert],
            mode=ITERATIVE,
        )
    )
    publisher.start()
    assert committing.wait(30)

    def let_it_commit() -> None:
        listed.set()
        publisher.join(30)

    slow.append(let_it_commit)
    sleeper()
    assert_whole(local_store, {"a", "b", "c"})


def test_a_publisher_stops_at_a_damaged_newest_version(local_store: Store, tmp_path: Path) -> None:
    publish_each(tmp_path, local_store, ["a", "b"])
    flip_a_bit(local_store, manifest_key(2))
    before = {info.key for info in local_store.list("")}
    for act in (
        lambda: edits.rollback(Versions(local_store), 1),
        lambda: edits.remove_task(Versions(local_store), "a"),
        lambda: collect(Versions(local_store), ALL_OLD),
    ):
        with pytest.raises(DamagedBlobError, match=r"00000002\.json is damaged"):
            act()
    assert {info.key for info in local_store.list("")} == before


def test_an_edit_that_lost_a_race_is_made_on_top_of_the_winner(local_store: Store, tmp_path: Path) -> None:
    publish_each(tmp_path, local_store, ["a", "b"])

    def another() -> None:
        publish_each(tmp_path, local_store, ["c"], seed=4)

    store = Interrupted(local_store, "put_if_absent", "versions/", another)
    edit = edits.remove_task(Versions(store), "a")  # type: ignore[arg-type]
    assert edit.manifest.version == 4
    assert_whole(local_store, {"b", "c"})


def test_an_acknowledged_blob_that_is_not_there_is_never_named(local_store: Store, tmp_path: Path) -> None:
    one, *_ = publish_each(tmp_path, local_store, ["a"])

    def build(parent: Manifest | None, nonce: str) -> Draft:
        assert parent is not None
        local_store.delete(one.state.shared["profile/1"].key)
        return Draft(parent.base, dict(parent.mode), parent.state)

    with pytest.raises(Exception, match="is missing: nothing was published"):
        publish(Versions(local_store), build, created={"kind": "test", "why": "test"})
    assert Versions(local_store).all_numbers() == [1]


@pytest.mark.processes
def test_a_killed_collection_leaves_every_kept_version_whole(local_store: Store, tmp_path: Path) -> None:
    publish_each(tmp_path, local_store, [f"t{i}" for i in range(6)], mode=ITERATIVE)
    orphans = [f"blobs/00/{i:064x}-0123456789abcdef" for i in range(400)]
    for key in orphans:
        local_store.put_if_absent(key, b"left by a crash")
    code = (
        "import sys\n"
        "from fusion.versions.gc import Policy, collect\n"
        "from fusion.store import open_store\n"
        "from fusion.versions.publish import Versions\n"
        "collect(Versions(open_store(sys.argv[1])), Policy(keep=1, keep_days=0))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, local_store.url], cwd=ROOT)
    while local_store.head(orphans[0]) is not None:
        assert process.poll() is None, "it ended before it deleted anything"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    newest = assert_whole(local_store, {f"t{i}" for i in range(6)})
    assert (newest.version, newest.is_gc) == (7, True)
    left = sum(1 for _ in local_store.list("blobs/00/"))
    found = collect(Versions(local_store))
    assert len(found.blobs) >= left
    assert not any(info.key in orphans for info in local_store.list("blobs/"))
    assert_whole(local_store, {f"t{i}" for i in range(6)})


def one_round(url: str, folder: Path, names: list[str]) -> None:
    """One publisher per name, two collectors that never stop, and a reader, all at once."""
    base, path = random_base(folder, open_store(url))
    errors: list[BaseException] = []
    publishing = len(names)
    start = threading.Barrier(len(names) + 3)
    lock = threading.Lock()

    def guarded(work: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            try:
                start.wait()
                work()
            except BaseException as error:
                errors.append(error)

        return run

    def publisher(number: int, name: str) -> Callable[[], None]:
        def work() -> None:
            nonlocal publishing
            try:
                cache = NodeCache(open_store(url), folder / f"cache-{name}")
                fuse_experts(cache, base, [random_expert(folder, path, name, seed=number)], mode=ITERATIVE)
            finally:
                with lock:
                    publishing -= 1

        return work

    def collector() -> None:
        while publishing:
            collect(Versions(open_store(url)), ALL_OLD)
            time.sleep(random.uniform(0, 0.3))  # without a pause it would take every publisher's number

    def reader() -> None:
        versions = Versions(open_store(url))
        while publishing:
            newest = versions.newest()
            assert newest is not None
            try:
                for task in newest.state.tasks:
                    assert dict(decoupled_tensors(NodeCache(open_store(url), folder / "reader"), newest, task))
            except (BlobNotFoundError, StateDictError, VersionGoneError):
                later = Versions(open_store(url)).newest_number()
                assert later > newest.version, "what the newest version names is there"

    work = [publisher(i, name) for i, name in enumerate(names)] + [collector, collector, reader]
    threads = [threading.Thread(target=guarded(one)) for one in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors, errors


@pytest.mark.parametrize(
    ("num_publishers", "rounds"),
    [(2, 3), pytest.param(2, 25, marks=pytest.mark.soak), pytest.param(8, 25, marks=pytest.mark.soak)],
)
def test_after_every_round_all_published_and_every_kept_version_is_whole(
    num_publishers: int, rounds: int, any_store: Store, tmp_path: Path
) -> None:
    publish_each(tmp_path, any_store, ["first"], mode=ITERATIVE)
    for number in range(rounds):
        names = [f"r{number}-{i}" for i in range(num_publishers)]
        one_round(any_store.url, tmp_path, names)
        newest = Versions(any_store).newest()
        assert newest is not None
        assert {"first", *names} <= set(newest.state.tasks), "every publisher's task is in the newest version"
        found = verify(Versions(any_store))
        assert found.findings == (), found
        for name in names[1:]:
            edits.remove_task(Versions(any_store), name)
    collect(Versions(any_store), ALL_OLD)
    assert verify(Versions(any_store)).findings == ()
    cold = cache_of(any_store, tmp_path / "cold")
    last = Versions(any_store).newest()
    assert last is not None
    assert all(dict(decoupled_tensors(cold, last, task)) for task in last.state.tasks)
