"""The fusion actor: killed at any point, it fuses each expert once; callers take turns; errors come back unchanged."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest

from fusion.actor import FusionClient, FusionProgress, find_progress
from fusion.decouple import decoupled_tensors
from fusion.errors import DamagedBlobError, StoreUnavailableError, TaskNameError
from fusion.fuse import ExpertToFuse
from fusion.store import Store
from fusion.store.address import StoreAddress
from fusion.store.blobs import BlobRef
from fusion.versions.bases import Base
from fusion.versions.history import Versions
from tests.fusion.vectors import cache_of, random_base, random_expert

pytestmark = pytest.mark.usefixtures("ray_session")
SIGNED = {"name": "signed", "bits": 2}
ITERATIVE = {"name": "iterative"}


@pytest.fixture
def client(local_store: Store, tmp_path: Path) -> FusionClient:
    return FusionClient(StoreAddress(local_store.url, cache_folder=tmp_path / "cache"), num_cpus=0.1)


def killing(client: FusionClient, when: Callable[[], bool]) -> threading.Thread:
    """A thread that sends SIGKILL to the actor's process as soon as `when` returns true."""
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


def test_a_mistake_in_a_call_comes_back_as_the_plain_error(
    client: FusionClient, local_store: Store, tmp_path: Path
) -> None:
    base, path = random_base(tmp_path, local_store)
    client.fuse(base, [random_expert(tmp_path, path, "pets", seed=1)], mode=SIGNED)
    with pytest.raises(TaskNameError) as caught:
        client.fuse(base, [random_expert(tmp_path, path, "pets", seed=2)], mode=SIGNED)
    assert "Traceback" not in str(caught.value)
    assert "choose another name" in str(caught.value)


@pytest.mark.parametrize("num_experts", [1, 3])
@pytest.mark.parametrize("moment", ["at once", "first blob", "trigger", "manifest"])
def test_an_actor_killed_during_a_call_fuses_each_expert_once(
    moment: str, num_experts: int, client: FusionClient, local_store: Store, tmp_path: Path
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
    names = ["after", "then", "last"][:num_experts]
    experts = [random_expert(tmp_path, path, name, seed=2 + i) for i, name in enumerate(names)]
    version = client.fuse(base, experts, mode=ITERATIVE)
    killer.join()
    assert version == 2
    newest = Versions(local_store).newest()
    assert newest is not None
    assert newest.version == 2, "published once"
    sessions = {task: entry.session for task, entry in newest.state.tasks.items()}
    assert sessions == {name: session for session, name in enumerate(["before", *names], 1)}
    assert all(dict(decoupled_tensors(cache_of(local_store, tmp_path), newest, name)) for name in names)
    assert client.fuse(base, [random_expert(tmp_path, path, "next", seed=9)], mode=ITERATIVE) == 3


def test_simultaneous_callers_are_all_served(client: FusionClient, local_store: Store, tmp_path: Path) -> None:
    base, path = random_base(tmp_path, local_store)
    experts = [random_expert(tmp_path, path, f"t{i}", seed=i) for i in range(4)]
    versions: list[int] = []

    def call(k: int) -> None:
        own = FusionClient(StoreAddress(local_store.url, cache_folder=tmp_path / "cache"), num_cpus=0.1)
        versions.append(own.fuse(base, [experts[k]], mode=SIGNED))

    threads = [threading.Thread(target=call, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(versions) == [1, 2, 3, 4]


class Gate:
    """An expert whose prototypes are a pipe that nobody writes to: fusing it blocks until `open`, then fails."""

    def __init__(self, folder: Path, base: Path) -> None:
        self._pipe = folder / "store" / "experts" / "gate"
        self._pipe.parent.mkdir()
        os.mkfifo(self._pipe)
        weights = random_expert(folder, base, "gate", seed=99).weights
        self.expert = ExpertToFuse("gate", weights, prototypes=BlobRef("experts/gate", "0" * 64, 1))

    def open(self) -> None:
        os.close(os.open(self._pipe, os.O_WRONLY))


class Calls:
    """Calls to a fusion actor, each in a thread of its own."""

    def __init__(self, client: FusionClient, gate: Gate) -> None:
        self._client = client
        self._gate = gate
        self._threads: list[threading.Thread] = []
        self.problems: list[Exception] = []

    def add(self, client: FusionClient, expert: ExpertToFuse, base: Base) -> None:
        def call() -> None:
            try:
                client.fuse(base, [expert], mode=SIGNED)
            except Exception as error:
                self.problems.append(error)

        self._threads.append(threading.Thread(target=call))
        self._threads[-1].start()

    def wait_for(self, what: Callable[[FusionProgress], bool]) -> FusionProgress:
        deadline = time.monotonic() + 60
        while not what(progress := self._client.progress()):
            assert time.monotonic() < deadline, f"waited too long: {progress}"
            time.sleep(0.02)
        return progress

    def finish(self) -> None:
        self._gate.open()
        for thread in self._threads:
            thread.join(60)
        assert [str(error) for error in self.problems if not isinstance(error, DamagedBlobError)] == []


def at_the_gate(progress: FusionProgress) -> bool:
    return progress.now is not None and progress.now.tasks == ("gate",)


def test_a_caller_that_floods_the_actor_delays_another_caller_by_at_most_one_call(
    client: FusionClient, local_store: Store, tmp_path: Path
) -> None:
    base, path = random_base(tmp_path, local_store)
    gate = Gate(tmp_path, path)
    calls = Calls(client, gate)
    calls.add(client, gate.expert, base)
    calls.wait_for(at_the_gate)
    for k in range(8):
        calls.add(client, random_expert(tmp_path, path, f"flood{k}", seed=k), base)
    calls.wait_for(lambda progress: len(progress.waiting) == 8)
    other = FusionClient(StoreAddress(local_store.url, cache_folder=tmp_path / "cache"), num_cpus=0.1)
    calls.add(other, random_expert(tmp_path, path, "other", seed=9), base)
    progress = calls.wait_for(lambda progress: len(progress.waiting) == 9)
    assert progress.waiting[0].caller == other.caller
    calls.finish()
    newest = Versions(local_store).newest()
    assert newest is not None
    assert newest.version == 9
    assert next(iter(newest.state.tasks)) == "other", "nine versions in turn, and the other caller's came first"


def test_progress_is_reported_while_a_fuse_runs(client: FusionClient, local_store: Store, tmp_path: Path) -> None:
    base, path = random_base(tmp_path, local_store)
    assert find_progress(local_store.url, timeout_s=10) is None, "asking does not start an actor"
    gate = Gate(tmp_path, path)
    calls = Calls(client, gate)
    client.fuse(base, [random_expert(tmp_path, path, "before", seed=1)], mode=SIGNED)
    calls.add(client, gate.expert, base)
    calls.wait_for(at_the_gate)
    calls.add(client, random_expert(tmp_path, path, "pets", seed=2), base)
    calls.wait_for(lambda progress: bool(progress.waiting))
    progress = find_progress(local_store.url, timeout_s=30)
    assert progress is not None
    assert progress.now is not None
    assert (progress.now.caller, progress.now.tasks, progress.now.stage) == (client.caller, ("gate",), "fuse")
    assert progress.now.seconds >= progress.now.stage_seconds > 0
    assert [(waiting.caller, waiting.what) for waiting in progress.waiting] == [(client.caller, ("pets",))]
    assert (progress.pid, progress.num_fused, progress.version, progress.error) == (client.pid(), 1, 1, None)
    assert json.loads(json.dumps(asdict(progress)))["now"]["tasks"] == ["gate"]
    calls.finish()
    after = client.progress()
    assert (after.now, after.waiting, after.num_fused, after.version) == (None, (), 2, 2)
    assert after.error is not None
    assert after.error.startswith("gate: DamagedBlobError")


def test_calls_that_wait_when_the_actor_is_killed_are_each_served_once_by_its_successor(
    client: FusionClient, local_store: Store, tmp_path: Path
) -> None:
    base, path = random_base(tmp_path, local_store)
    gate = Gate(tmp_path, path)
    calls = Calls(client, gate)
    calls.add(client, gate.expert, base)
    calls.wait_for(at_the_gate)
    other = FusionClient(StoreAddress(local_store.url, cache_folder=tmp_path / "cache"), num_cpus=0.1)
    for caller, task, seed in ((client, "a1", 1), (client, "a2", 2), (client, "a3", 3), (other, "b1", 4)):
        calls.add(caller, random_expert(tmp_path, path, task, seed=seed), base)
        calls.wait_for(lambda progress, seed=seed: len(progress.waiting) == seed)  # type: ignore[misc]
    killed = client.pid()
    os.kill(killed, signal.SIGKILL)
    calls.wait_for(lambda progress: progress.pid != killed)
    calls.finish()
    newest = Versions(local_store).newest()
    assert newest is not None
    assert newest.version == 4
    assert set(newest.state.tasks) == {"a1", "a2", "a3", "b1"}
    tasks = list(newest.state.tasks)
    assert tasks.index("a1") < tasks.index("a2") < tasks.index("a3"), "a caller's own calls keep their order"


@pytest.mark.parametrize(("num_cpus", "threads"), [(0, "1"), (0.1, "1"), (2, "2")])
def test_the_actors_kernels_use_one_thread_per_reserved_core_and_one_without(
    num_cpus: float, threads: str, local_store: Store
) -> None:
    pid = FusionClient(StoreAddress(local_store.url), num_cpus=num_cpus).pid()
    environment = Path(f"/proc/{pid}/environ").read_text().split("\0")
    assert f"OMP_NUM_THREADS={threads}" in environment


def test_an_actor_that_gets_no_cores_is_reported_instead_of_waited_for(local_store: Store) -> None:
    with pytest.raises(StoreUnavailableError, match=r"reserves num_cpus 100, .* set fusion.num_cpus to 0"):
        FusionClient(StoreAddress(local_store.url), num_cpus=100).start(timeout_s=2)
