"""The service as it runs: real Serve replicas, a real port, a real store."""

from __future__ import annotations

import logging
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import Any

import httpx
import pytest

from fusion.answers.label_spaces import Query
from fusion.answers.predictor import Predictor
from fusion.errors import ConfigError
from fusion.store import Store, open_store
from fusion.store.address import StoreAddress
from fusion.store.node_cache import NodeCache
from serving.app import APP_NAME, start, stop
from serving.options import ServiceOptions
from serving.replica import Replica
from serving.status import REPLICA
from tests.serving.helpers import error_of, form_of, free_port, pictures, png, publish_tasks

pytestmark = pytest.mark.usefixtures("ray_session")

_THREE_EXPERTS = 1_600_000
"""Bytes in which the image sides of three tiny experts fit, and not those of four."""


class Running:
    """A service, its store, and a client of it."""

    def __init__(self, store: Store, options: ServiceOptions) -> None:
        self.store = store
        self.options = options
        self.client = httpx.Client(base_url=f"http://{options.host}:{options.port}", timeout=60, trust_env=False)

    def predict(self, *names: str, **data: Any) -> httpx.Response:
        return self.client.post("/v1/predict", files=form_of(pictures(*names)), data=data)

    def stats(self) -> dict[str, Any]:
        from ray import serve

        found: dict[str, Any] = serve.get_deployment_handle(REPLICA, APP_NAME).stats.remote().result(timeout_s=20)
        return found

    def until_version(self, number: int) -> None:
        deadline = time.monotonic() + 20
        while self.client.get("/readyz").json()["version"] != number:
            assert time.monotonic() < deadline, f"version {number} was not picked up"
            time.sleep(0.05)


class TalkingReplica(Replica):
    """A replica, and a way to make `fusion` log in it."""

    async def log(self, logger: str, message: str) -> list[str]:
        """Warn; the log files that this replica's Ray Serve writes."""
        logging.getLogger(logger).warning(message)
        handlers = logging.getLogger("ray.serve").handlers
        return [handler.target.baseFilename for handler in handlers if isinstance(handler, MemoryHandler)]


@pytest.fixture(scope="module")
def service(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    store = open_store(str(tmp_path_factory.mktemp("store")))
    publish_tasks(store)
    options = ServiceOptions(
        address=StoreAddress(store.url),
        port=free_port(),
        num_cpus=0.5,
        expert_memory=_THREE_EXPERTS,
        poll_s=0.2,
        max_images=8,
        max_queued_requests=16,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("serving.app.Replica", TalkingReplica)
        start(options)
    try:
        yield Running(store, options)
    finally:
        stop()


@pytest.mark.parametrize(
    "query",
    [
        Query("task", task="shapes"),
        Query("labels", labels=("red", "circle", "a tree"), templates=("a {}.", "{}!"), top_k=2),
        Query("seen", top_k=2),
    ],
    ids=lambda query: query.label_space,
)
def test_every_label_space_answers_as_the_plain_predictor_does(service: Running, query: Query) -> None:
    names = ("red", "circle", "blue", "square", "triangle")
    predictor = Predictor(NodeCache(service.store))
    data: dict[str, Any] = {"version": 1, "top_k": query.top_k}
    data |= {"task": query.task} if query.task else {}
    data |= {"labels": list(query.labels), "templates": list(query.templates)} if query.labels else {}
    answer = service.predict(*names, **data)
    assert answer.status_code == 200, answer.text
    wanted = predictor.predict(pictures(*names), query, view=predictor.view(1))
    for got, want in zip(answer.json()["predictions"], wanted, strict=True):
        assert (got["label"], got["task"], got["experts"]) == (want.label, want.task, list(want.experts))
        for mine, (task, label, probability) in zip(got["top"], want.top, strict=True):
            assert (mine["task"], mine["label"]) == (task, label)
            assert mine["probability"] == pytest.approx(probability, abs=1e-4)


def test_the_base_does_not_run_where_the_task_is_named(service: Running) -> None:
    before = service.stats()["images"]
    assert service.predict("red", "blue", task="colours").status_code == 200
    assert service.stats()["images"] == before + 2  # once by the expert
    answer = service.predict("red", "blue")
    assert service.stats()["images"] == before + 4 + answer.json()["expert_forwards"]


def test_images_of_concurrent_requests_share_forwards(service: Running) -> None:
    before = service.stats()
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda _: service.predict("red", task="colours"), range(36)))
    assert [answer.status_code for answer in answers] == [200] * 36
    after = service.stats()
    assert after["images"] - before["images"] == 36
    assert after["batches"] - before["batches"] < 36


def test_a_bad_request_is_refused_and_the_next_one_is_answered(service: Running) -> None:
    good = png(pictures("red")[0])
    cases: list[tuple[list[bytes], dict[str, Any], int, str]] = [
        ([good], {"task": "nothing"}, 404, "no task 'nothing'"),
        ([good], {"label_space": "none"}, 422, "label_space"),
        ([good], {"version": "99"}, 404, "no version 99"),
        ([good], {"top_k": "-1"}, 422, "top_k"),
        ([good, b"\x89PNG\r\n\x1a\nnope", good], {}, 422, "image 2 of 3: 1.png"),
        ([b""], {}, 422, "0.png is empty"),
        ([good] * 9, {}, 422, "more than 8 images"),
    ]
    for images, data, status, says in cases:
        answer = service.client.post("/v1/predict", files=form_of(images), data=data)
        assert answer.status_code == status, answer.text
        assert says in error_of(answer)
        assert service.predict("red").status_code == 200
    assert service.client.get("/nothing").status_code == 404


def test_the_operators_pages_answer(service: Running) -> None:
    assert service.client.get("/healthz").json() == {"status": "ok"}
    ready = service.client.get("/readyz").json()
    assert (ready["ready"], ready["problem"]) == (True, None)
    assert "openapi.json" in service.client.get("/docs").text
    assert "/v1/predict" in service.client.get("/openapi.json").json()["paths"]
    tasks = service.client.get("/v1/tasks", params={"version": 1}).json()["tasks"]
    assert [task["name"] for task in tasks] == ["colours", "shapes", "pair"]
    assert service.client.get("/v1/versions").json()["versions"][-1]["version"] == 1


@pytest.mark.parametrize("logger", ["fusion.store.s3", "serving.watch"])
def test_what_our_packages_log_in_a_replica_is_in_the_replicas_log(service: Running, logger: str) -> None:
    from ray import serve

    message = f"a line of {logger}"
    replica = serve.get_deployment_handle(REPLICA, APP_NAME)
    (path,) = replica.log.remote(logger, message).result(timeout_s=20)
    lines = [line for line in Path(path).read_text().splitlines() if message in line]
    assert len(lines) == 1
    assert re.match(rf"WARNING .* {APP_NAME}_{REPLICA} .*{message}$", lines[0]), lines[0]


def test_a_port_in_use_ends_the_start_with_a_clear_error(service: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray import serve

    monkeypatch.setattr(serve, "status", lambda: serve.schema.ServeStatus())  # as if Serve were not up yet
    with pytest.raises(ConfigError, match="can't listen"):
        start(service.options)


def test_a_new_version_is_picked_up_under_load_without_a_failed_request(service: Running) -> None:
    newest = service.client.get("/readyz").json()["version"]
    done = threading.Event()
    answers: list[httpx.Response] = []

    def load(data: dict[str, Any]) -> None:
        while not done.is_set():
            answers.append(service.predict("red", "circle", **data))

    with ThreadPoolExecutor(4) as pool:
        try:
            for data in ({"task": "colours"}, {"labels": ["red", "circle"]}, {}, {"version": "1"}):
                pool.submit(load, data)
            manifest = publish_tasks(service.store, {"late": ("green", "square")})
            service.until_version(manifest.version)
            # another expert under the same name: its key changes, and so does its answer
            manifest = publish_tasks(service.store, {"colours": ("red", "green", "blue", "yellow")}, seed=5)
            service.until_version(manifest.version)
            time.sleep(0.5)
        finally:
            done.set()
    assert {answer.status_code for answer in answers} == {200}
    assert {1, newest, manifest.version} <= {answer.json()["version"] for answer in answers}
    late = service.predict("green", task="late")
    assert (late.status_code, late.json()["version"]) == (200, manifest.version)
    new = service.predict("red", task="colours").json()["predictions"][0]
    old = service.predict("red", task="colours", version=1).json()["predictions"][0]
    assert abs(new["probability"] - old["probability"]) > 1e-6
    assert service.predict("green", task="late", version=1).status_code == 404


def test_more_hot_experts_than_fit_in_memory_are_slower_and_never_wrong(service: Running) -> None:
    names = [task["name"] for task in service.client.get("/v1/tasks").json()["tasks"]]
    assert len(names) > 3
    first = {name: service.predict("red", task=name).json()["predictions"] for name in names}
    with ThreadPoolExecutor(8) as pool:
        again = list(pool.map(lambda name: (name, service.predict("red", task=name).json()["predictions"]), names * 4))
    for name, got in again:
        assert got[0]["label"] == first[name][0]["label"]
        assert got[0]["probability"] == pytest.approx(first[name][0]["probability"], abs=1e-4)
    assert 1 <= len(service.stats()["experts"]) <= 3


def test_overload_is_turned_away_at_the_door_and_passes(service: Running) -> None:
    with ThreadPoolExecutor(60) as pool:
        answers = list(pool.map(lambda _: service.predict("red", "circle"), range(60)))
    assert {answer.status_code for answer in answers} == {200, 429}
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert refused.headers["Retry-After"]
    assert "in flight" in error_of(refused)
    assert service.predict("red").status_code == 200


class Load:
    """Four clients that ask one after the other; what each answer was: a status, or that there was none."""

    def __init__(self, service: Running, **data: Any) -> None:
        self.outcomes: list[int | str] = []
        self._service, self._data = service, data
        self._done = threading.Event()
        self._pool = ThreadPoolExecutor(4)

    def _ask(self) -> None:
        while not self._done.is_set():
            try:
                self.outcomes.append(self._service.predict("red", "circle", **self._data).status_code)
            except httpx.HTTPError as error:
                self.outcomes.append(type(error).__name__)

    def __enter__(self) -> list[int | str]:
        for _ in range(4):
            self._pool.submit(self._ask)
        time.sleep(0.5)
        return self.outcomes

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._pool.shutdown()


def test_a_killed_replica_costs_no_request_but_those_in_its_hands(service: Running) -> None:
    killed = service.stats()["pid"]
    with Load(service, task="colours") as outcomes:
        os.kill(killed, signal.SIGKILL)
        before = len(outcomes)
        while len(outcomes) < before + 12:  # thrice as many as were in flight: the service is back
            time.sleep(0.1)
    lost = [outcome for outcome in outcomes if outcome != 200]
    assert len(lost) <= 4, lost  # one of each client at most
    assert all(not isinstance(outcome, int) or outcome >= 500 for outcome in lost), lost  # a client may ask again
    assert outcomes[-4:] == [200] * 4
    assert service.stats()["pid"] != killed


def test_stopping_lets_requests_in_flight_finish(service: Running) -> None:
    # the last one here: it stops the service of this module
    with Load(service) as outcomes:
        stop()
    assert 200 in outcomes
    assert 503 in outcomes  # turned away while those in flight finished
    # requests after the app is gone find no route, then no server; no prediction was started and abandoned
    assert not {status for status in outcomes if isinstance(status, int)} - {200, 404, 503}
    with pytest.raises(httpx.NetworkError):  # refused, or reset where the proxy is just closing
        service.predict("red")
