"""A service under steady load while everything happens to it: publishes, a roll-back, a damaged version, a collection
that takes a pinned version, a killed replica. Nobody is told anything wrong, and who asks again loses nothing.

`make test` runs it for 12 seconds, `make soak` for a minute, with a thousand damaged bodies beside it.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from fusion.answers.label_spaces import Query
from fusion.answers.predictor import Predictor
from fusion.store import Store, open_store
from fusion.store.address import StoreAddress
from fusion.store.node_cache import NodeCache
from fusion.versions.edits import rollback
from fusion.versions.gc import Policy, collect
from fusion.versions.history import Versions, manifest_key
from serving.app import APP_NAME, start, stop
from serving.client import Client, ServiceError
from serving.options import ReplicaOptions, ServiceOptions
from serving.status import REPLICA
from tests.serving.helpers import TASKS, error_of, free_port, pictures, png, publish_tasks
from tests.serving.mutations import mutants

pytestmark = pytest.mark.usefixtures("ray_session")

IMAGES = pictures("red", "circle")
BODIES = [png(image) for image in IMAGES]
QUESTIONS: dict[str, tuple[dict[str, Any], Query]] = {
    "task": ({"task": "colours"}, Query("task", task="colours")),
    "labels": ({"labels": ["red", "circle", "a tree"]}, Query("labels", labels=("red", "circle", "a tree"))),
    "seen": ({}, Query("seen")),
}
Tops = list[list[tuple[str | None, str, float]]]


@dataclass
class Load:
    """Callers that ask at a steady rate until they are told to stop, and what they were told.

    `answers` are the versions and candidates that a question got. `refused` are what callers without retries got
    instead, `lost` what the client with its retries could not get, `pinned` the version that some of them name, and
    `of_pinned` the statuses that they got.
    """

    url: str
    answers: list[tuple[str, int, Tops]] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    of_pinned: Counter[int] = field(default_factory=Counter)
    done: threading.Event = field(default_factory=threading.Event)
    pinned: int = 0

    def plain(self, each_s: float) -> None:
        """Asks once each time, with httpx."""
        with httpx.Client(base_url=self.url, timeout=60, trust_env=False) as http:
            for name in self._turns(each_s):
                files = [("image", body) for body in BODIES]
                try:
                    answer = http.post("/v1/predict", files=files, data=QUESTIONS[name][0])
                except httpx.HTTPError as error:
                    self.refused.append(type(error).__name__)
                    continue
                if answer.status_code == 200:
                    self._note(name, answer.json())
                else:
                    self.refused.append(f"{answer.status_code} {answer.text[:200]}")

    def patient(self, each_s: float) -> None:
        """Asks with condu's client."""
        with Client(self.url) as client:
            for name in self._turns(each_s):
                try:
                    self._note(name, client.predict(BODIES, **QUESTIONS[name][0]).model_dump())
                except ServiceError as error:
                    self.lost.append(str(error))

    def of_one_version(self, each_s: float) -> None:
        """Asks one version, whatever happens. After its end replicas may still hold it, and answer; or it is gone."""
        with Client(self.url) as client:
            for name in self._turns(each_s):
                try:
                    answer = client.predict(BODIES, **QUESTIONS[name][0], version=self.pinned)
                    self._note(name, answer.model_dump())
                    self.of_pinned[200] += 1
                except ServiceError as error:
                    if error.status != 410:
                        self.lost.append(str(error))
                    self.of_pinned[error.status or 0] += 1

    def _turns(self, each_s: float) -> Iterator[str]:
        names, start = list(QUESTIONS), time.monotonic()
        for number in range(1_000_000):
            if self.done.wait(max(0.0, start + number * each_s - time.monotonic())):
                return
            yield names[number % len(names)]

    def _note(self, name: str, answer: dict[str, Any]) -> None:
        tops = [[(c["task"], c["label"], c["probability"]) for c in one["top"]] for one in answer["predictions"]]
        self.answers.append((name, answer["version"], tops))


class Truth:
    """What the plain predictor says, by version and question."""

    def __init__(self, store: Store) -> None:
        self._predictor = Predictor(NodeCache(store))
        self.tops: dict[tuple[str, int], Tops] = {}

    def note(self, version: int) -> None:
        view = self._predictor.view(version)
        for name, (_, query) in QUESTIONS.items():
            found = self._predictor.predict(IMAGES, query, view=view)
            self.tops[name, version] = [list(one.top) for one in found]

    def agrees(self, name: str, version: int, tops: Tops) -> bool:
        wanted = self.tops[name, version]
        return all(
            (task, label) == (t, text) and abs(p - probability) < 1e-4
            for mine, theirs in zip(tops, wanted, strict=True)
            for (task, label, probability), (t, text, p) in zip(mine, theirs, strict=True)
        )


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


def until(holds: Callable[[], bool], what: str, limit_s: float = 60) -> None:
    deadline = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


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
