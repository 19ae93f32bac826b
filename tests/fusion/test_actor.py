"""The fusion actor: killed at any point, it fuses each expert once; errors come back as they were."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fusion.actor import FusionClient
from fusion.decouple import decoupled_tensors
from fusion.errors import TaskNameError
from fusion.store import Store
from fusion.versions import Versions
from tests.fusion.vectors import cache_of, random_base, random_expert

pytestmark = pytest.mark.usefixtures("ray_session")
SIGNED = {"name": "signed", "bits": 2}
ITERATIVE = {"name": "iterative"}


@pytest.fixture
def client(local_store: Store, tmp_path: Path) -> FusionClient:
    return FusionClient(local_store.url, num_cpus=0.1, cache_folder=tmp_path / "cache")


def killing(client: FusionClient, when: Callable[[], bool]) -> threading.Thread:
    """A thread that sends SIGKILL to the actor's process as soon as `when` says so."""
    pid = client.pid()

    def kill() -> None:
        deadline = time.monotonic() + 30
        while not when() and time.monotonic() < deadline:
            time.sleep(0.0005)
        os.kill(pid, signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    return thread


def count(store: Store, prefix: str) -> int:
    return sum(1 for _ in store.list(prefix))


def test_fusing_through_the_actor_is_idempotent(client: FusionClient, local_store: Store, tmp_path: Path) -> None:
    base, path = random_base(tmp_path, local_store)
    expert = random_expert(tmp_path, path, "pets", seed=1)
    assert client.fuse(base, [expert], mode=SIGNED) == 1
    before = {info.key for info in local_store.list("")}
    assert client.fuse(base, [expert], mode=SIGNED) == 1
    assert {info.key for info in local_store.list("")} == before


def test_what_is_wrong_with_a_call_comes_back_as_the_plain_error(
    client: FusionClient, local_store: Store, tmp_path: Path
) -> None:
    base, path = random_base(tmp_path, local_store)
    client.fuse(base, [random_expert(tmp_path, path, "pets", seed=1)], mode=SIGNED)
    with pytest.raises(TaskNameError) as caught:
        client.fuse(base, [random_expert(tmp_path, path, "pets", seed=2)], mode=SIGNED)
    assert "Traceback" not in str(caught.value)
    assert "choose another name" in str(caught.value)


@pytest.mark.parametrize("moment", ["at once", "first blob", "trigger", "manifest"])
def test_an_actor_killed_on_the_way_fuses_the_expert_once(
    moment: str, client: FusionClient, local_store: Store, tmp_path: Path
) -> None:
    base, path = random_base(tmp_path, local_store)
    assert client.fuse(base, [random_expert(tmp_path, path, "before", seed=1)], mode=ITERATIVE) == 1
    blobs = count(local_store, "blobs/")
    reached = {
        "at once": lambda: True,
        "first blob": lambda: count(local_store, "blobs/") > blobs,
        "trigger": lambda: count(local_store, "blobs/") > blobs + 2,
        "manifest": lambda: count(local_store, "versions/") > 1,
    }[moment]
    killer = killing(client, reached)
    version = client.fuse(base, [random_expert(tmp_path, path, "after", seed=2)], mode=ITERATIVE)
    killer.join()
    assert version == 2
    newest = Versions(local_store).newest()
    assert newest is not None
    assert newest.version == 2, "published once"
    assert {task: entry.session for task, entry in newest.state.tasks.items()} == {"before": 1, "after": 2}
    assert dict(decoupled_tensors(cache_of(local_store, tmp_path), newest, "after"))
    assert client.fuse(base, [random_expert(tmp_path, path, "last", seed=3)], mode=ITERATIVE) == 3


def test_callers_at_once_are_all_served(client: FusionClient, local_store: Store, tmp_path: Path) -> None:
    base, path = random_base(tmp_path, local_store)
    experts = [random_expert(tmp_path, path, f"t{i}", seed=i) for i in range(4)]
    versions: list[int] = []

    def call(k: int) -> None:
        own = FusionClient(local_store.url, num_cpus=0.1, cache_folder=tmp_path / "cache")
        versions.append(own.fuse(base, [experts[k]], mode=SIGNED))

    threads = [threading.Thread(target=call, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(versions) == [1, 2, 3, 4]
