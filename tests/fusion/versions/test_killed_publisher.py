"""`kill -9` of a publisher at every call to its store: nothing is half published, and a retry completes it."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from fusion.fuse import ExpertToFuse, fuse_experts
from fusion.store import Store, open_store
from fusion.store.node_cache import NodeCache
from fusion.versions.bases import Base
from fusion.versions.history import Versions, manifest_key
from tests.fusion.faults import StruckStore, copy_store, read_whole, same
from tests.fusion.vectors import cache_of, random_base, random_expert
from tests.processes import ended, start

pytestmark = pytest.mark.processes
MODES: list[dict[str, Any]] = [{"name": "iterative"}, {"name": "signed", "bits": 1}]
MANIFEST = ("put_if_absent", manifest_key(3))

Point = tuple[int, bool]
"""The call's number, and whether the kill comes after it."""


@pytest.fixture(autouse=True)
def _scratch_of_children_is_cleaned_with_the_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # a killed process leaves its scratch folder


class Published:
    """A store of two tasks, and the third expert that is to be fused into copies of it."""

    def __init__(self, url: str, folder: Path, mode: dict[str, Any]) -> None:
        self.url = url
        self.folder = folder
        self.mode = mode
        template = self.open("template")
        self.base, path = random_base(folder, template)
        for seed, task in enumerate(("first", "second")):
            fuse_experts(
                cache_of(template, folder), self.base, [random_expert(folder, path, task, seed=seed)], mode=mode
            )
        self.expert = random_expert(folder, path, "third", seed=9)
        newest = Versions(template).newest()
        assert newest is not None
        self.before = newest
        self.old = read_whole(template, folder, newest)

    def open(self, name: str) -> Store:
        return open_store(f"{self.url}/{name}")

    def copy(self, name: str) -> Store:
        copy_store(self.open("template"), self.open(name))
        return self.open(name)

    def calls(self) -> list[tuple[str, str]]:
        """The calls that fusing makes of the store."""
        counting = StruckStore(self.copy("counted"))
        fuse_once(counting, self.folder / "counted", self.base, self.expert, self.mode)
        self.new = read_whole(self.open("counted"), self.folder, Versions(self.open("counted")).read(3))
        return counting.calls


def fuse_once(store: Any, cache: Path, base: Base, expert: ExpertToFuse, mode: dict[str, Any]) -> None:
    fuse_experts(NodeCache(store, cache), base, [expert], mode=mode)


def fuse_and_die(
    url: str, cache: Path, base: Base, expert: ExpertToFuse, mode: dict[str, Any], at: int, after: bool
) -> None:
    fuse_once(StruckStore(open_store(url), at=at, after=after), cache, base, expert, mode)


def check_a_kill_at(published: Published, point: Point) -> None:
    at, after = point
    name = f"{'after' if after else 'before'}-{at}"
    store, cache = published.copy(name), published.folder / name
    arguments = (cache, published.base, published.expert, published.mode)
    assert ended(start(fuse_and_die, store.url, *arguments, at, after)) == -signal.SIGKILL, name

    versions = Versions(store)
    newest = versions.newest()
    assert newest is not None, name
    assert newest.version in (2, 3), name
    if newest.version == 2:
        assert newest == published.before, name
    for task, tensors in read_whole(store, published.folder, newest).items():
        assert same(tensors, (published.old if newest.version == 2 else published.new)[task]), (name, task)

    result = fuse_experts(NodeCache(store, cache), published.base, [published.expert], mode=published.mode)
    assert result.fused == (("third",) if newest.version == 2 else ()), name
    assert versions.all_numbers() == [1, 2, 3], name
    assert {task: entry.session for task, entry in result.manifest.state.tasks.items()} == {
        "first": 1,
        "second": 2,
        "third": 3,
    }, name
    for task, tensors in read_whole(store, published.folder, result.manifest).items():
        assert same(tensors, published.new[task]), (name, task)


def all_points(calls: list[tuple[str, str]]) -> list[Point]:
    return [(number, after) for number in range(1, len(calls) + 1) for after in (False, True)]


def some_points(calls: list[tuple[str, str]]) -> list[Point]:
    """Both sides of the commit, the first and the last call, and the first, middle and last of the other writes."""
    commit = calls.index(MANIFEST) + 1
    writes = [number for number, (method, _) in enumerate(calls, 1) if method == "put_if_absent" and number != commit]
    chosen = {writes[0], writes[len(writes) // 2], writes[-1]}
    return [(1, False), *((number, True) for number in sorted(chosen)), (commit, False), (commit, True)]


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode["name"])
def test_a_publisher_killed_at_some_calls_publishes_once_when_run_again(
    mode: dict[str, Any], store_url: str, tmp_path: Path
) -> None:
    published = Published(store_url, tmp_path, mode)
    for point in some_points(published.calls()):
        check_a_kill_at(published, point)


@pytest.mark.soak
@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode["name"])
def test_a_publisher_killed_at_any_call_publishes_once_when_run_again(
    mode: dict[str, Any], store_url: str, tmp_path: Path
) -> None:
    published = Published(store_url, tmp_path, mode)
    points = all_points(published.calls())
    assert len(points) >= 20
    for point in points:
        check_a_kill_at(published, point)
