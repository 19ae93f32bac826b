"""A service under steady load while everything happens to it: publishes, a roll-back, a damaged version, a collection
that takes a pinned version, a killed replica. Nobody is told anything wrong, and who asks again loses nothing.

`make test` runs it for 12 seconds, `make soak` for a minute, with a thousand damaged bodies beside it.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from fusion.store import Store, open_store
from fusion.store.address import StoreAddress
from fusion.versions.edits import rollback
from fusion.versions.gc import Policy, collect
from fusion.versions.history import Versions, manifest_key
from serving.app import APP_NAME, start, stop
from serving.options import ReplicaOptions, ServiceOptions
from serving.status import REPLICA
from tests.serving.helpers import TASKS, error_of, free_port, publish_tasks
from tests.serving.mutations import mutants
from tests.serving.steady_load import BODIES, Load, Truth, until

pytestmark = pytest.mark.usefixtures("ray_session")


@pytest.fixture
def served(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Store, str]]:
    store = open_store(str(tmp_path_factory.mktemp("store")))
    publish_tasks(store, evidence=True)
    options = ServiceOptions(
        address=StoreAddress(store.url),
        port=free_port(),
        num_cpus=0.5,
        poll_s=0.2,
        replicas=ReplicaOptions(min=2, max=2),
        max_queued_requests=256,
    )
    start(options)
    try:
        yield store, f"http://{options.host}:{options.port}"
    finally:
        stop()


def versions_served(url: str, asks: int = 12) -> set[int]:
    with httpx.Client(base_url=url, trust_env=False) as http:
        return {http.get("/readyz").json()["version"] for _ in range(asks)}


@pytest.mark.parametrize("seconds", [12, pytest.param(60, marks=pytest.mark.soak)])
def test_nothing_that_happens_to_a_service_is_told_to_its_callers(served: tuple[Store, str], seconds: float) -> None:
    store, url = served
    load, truth = Load(url), Truth(store)
    truth.note(1)
    between = seconds / 10

    def publish(number: int) -> int:
        version = publish_tasks(store, {"late": ("green", "square")}, seed=number, evidence=True).version
        truth.note(version)
        return version

    with ThreadPoolExecutor(8) as pool:
        try:
            callers = [pool.submit(ask, 0.3) for ask in 4 * [load.plain] + 2 * [load.patient]]
            load.pinned = publish(2)
            callers.append(pool.submit(load.of_one_version, 0.3))
            for number in (3, 4, 5):
                time.sleep(between)
                newest = publish(number)
            time.sleep(between)
            newest = rollback(Versions(store), 1).manifest.version
            truth.note(newest)
            time.sleep(between)

            # a version whose manifest is damaged: callers stay on the last good one, until somebody removes it
            store.put_if_absent(manifest_key(newest + 1), b"{ damaged")
            time.sleep(between)
            assert versions_served(url) == {newest}
            store.delete(manifest_key(newest + 1))
            newest = publish(6)
            until(lambda: versions_served(url) == {newest}, "the version after the damaged one is not served")

            assert load.of_pinned[200] > 0
            collected = collect(Versions(store), Policy(keep=1, keep_days=0)).version
            assert collected is not None
            truth.note(collected)
            assert load.pinned not in Versions(store).all_numbers()
            time.sleep(between)
            with httpx.Client(base_url=url, trust_env=False) as http:  # of a version that no replica holds any longer
                answer = http.post("/v1/predict", files={"image": BODIES[0]}, data={"version": "3"})
                assert (answer.status_code, error_of(answer)[:9]) == (410, "version 3"), answer.text
            refused_before = list(load.refused)

            os.kill(min(replicas()), signal.SIGKILL)
            asked = len(load.answers)
            until(lambda: len(load.answers) > asked + 40, "the service did not come back after its replica was killed")
            time.sleep(between)
        finally:
            load.done.set()
        for caller in callers:
            caller.result()

    assert refused_before == []
    assert load.lost == []
    assert len(load.refused) <= 4, load.refused  # at most what each caller had in the killed process's hands
    wrong = [(name, version) for name, version, tops in load.answers if not truth.agrees(name, version, tops)]
    assert wrong == []
    assert len({version for _, version, _ in load.answers}) >= 7
    print(f"{len(load.answers)} answers, refused: {load.refused}, pinned: {dict(load.of_pinned)}")


@pytest.mark.soak
def test_a_thousand_damaged_bodies_cost_no_replica_and_no_memory(served: tuple[Store, str]) -> None:
    _, url = served
    statuses: Counter[int] = Counter()
    sizes: list[int] = []
    before = replicas()
    with httpx.Client(base_url=url, timeout=60, trust_env=False) as http:
        for number, (path, headers, body) in enumerate(mutants(random.Random(0), 1000, tuple(TASKS))):
            answer = http.post(path, content=body, headers=headers)
            statuses[answer.status_code] += 1
            assert answer.status_code < 500, (number, answer.text)
            if number % 100 == 99:
                sizes.append(sum(_resident(pid) for pid in before))
        assert http.post("/v1/predict", files={"image": BODIES[0]}).status_code == 200
    assert replicas() == before
    print(f"answers: {dict(statuses)}; MiB of the replicas, each 100: {[size >> 20 for size in sizes]}")
    assert max(sizes[5:]) < 1.05 * max(sizes[:5])


def replicas() -> set[int]:
    """The process ids of the service's replicas."""
    from ray import serve

    found = serve.get_deployment_handle(REPLICA, APP_NAME).broadcast("stats").results(timeout_s=20)
    return {int(one["pid"]) for one in found}


def _resident(pid: int) -> int:
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
