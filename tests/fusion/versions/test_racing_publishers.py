"""Publishers in separate processes that start at once, round after round: each publishes exactly once."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from fusion.fuse import ExpertToFuse, fuse_experts
from fusion.store import open_store
from fusion.store.node_cache import NodeCache
from fusion.versions.bases import Base
from fusion.versions.history import Versions
from tests.fusion.faults import read_whole
from tests.fusion.vectors import random_base, random_expert
from tests.processes import barrier, ended, start

pytestmark = pytest.mark.processes
MODES: list[dict[str, Any]] = [{"name": "iterative"}, {"name": "signed", "bits": 2}]


@pytest.fixture(autouse=True)
def _scratch_of_children_is_cleaned_with_the_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # a killed process leaves its scratch folder


def publish_in_rounds(
    url: str, cache: Path, base: Base, experts: list[ExpertToFuse], mode: dict[str, Any], together: Any
) -> None:
    """One version per expert; every round starts when all publishers are ready."""
    own = NodeCache(open_store(url), cache)
    for expert in experts:
        together.wait()
        fuse_experts(own, base, [expert], mode=mode)


def check_a_race(url: str, folder: Path, mode: dict[str, Any], *, publishers: int, rounds: int) -> None:
    store = open_store(url)
    base, path = random_base(folder, store)
    together = barrier(publishers)
    given = [
        [random_expert(folder, path, f"p{k}-r{n}", seed=k * rounds + n) for n in range(rounds)]
        for k in range(publishers)
    ]
    processes = [
        start(publish_in_rounds, url, folder / f"cache-of-{k}", base, experts, mode, together)
        for k, experts in enumerate(given)
    ]
    assert [ended(process, 3000) for process in processes] == [0] * publishers

    versions = Versions(store)
    total = publishers * rounds
    assert versions.all_numbers() == list(range(1, total + 1))
    manifests = [versions.read(number) for number in range(1, total + 1)]
    newest = manifests[-1]
    assert set(newest.state.tasks) == {expert.task for experts in given for expert in experts}
    assert sorted(entry.session for entry in newest.state.tasks.values()) == list(range(1, total + 1))
    for before, after in itertools.pairwise(manifests):
        assert list(after.state.tasks)[:-1] == list(before.state.tasks), "each version builds on the one before"
    read_whole(store, folder, newest)


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode["name"])
def test_two_publishers_at_once_both_publish(mode: dict[str, Any], store_url: str, tmp_path: Path) -> None:
    check_a_race(store_url, tmp_path, mode, publishers=2, rounds=4)


@pytest.mark.soak
@pytest.mark.parametrize("publishers", [2, 8])
@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode["name"])
def test_in_many_rounds_all_publishers_publish(
    mode: dict[str, Any], publishers: int, store_url: str, tmp_path: Path
) -> None:
    check_a_race(store_url, tmp_path, mode, publishers=publishers, rounds=25)
