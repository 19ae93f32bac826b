"""The request log: what is kept of what is asked, in how much memory, and that nobody notices when it can't be kept."""

from __future__ import annotations

import asyncio
import io
import logging
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from fusion.answers.predictor import Predictor
from fusion.errors import StoreUnavailableError
from fusion.store import Store, open_store
from fusion.store.local import LocalStore
from fusion.store.node_cache import NodeCache
from serving.metrics import Metrics, Outcome
from serving.options import LogOptions
from serving.request_log.rows import Row, to_parquet
from serving.request_log.writer import LogWriter
from tests.serving.helpers import form_of, pictures, png, publish_tasks
from tests.serving.plain import PlainService

LATER = 3600.0


class Counted(Metrics):
    """How many rows ended how."""

    def __init__(self) -> None:
        self.rows: dict[Outcome, int] = {"written": 0, "no_room": 0, "failed": 0}

    def logged(self, outcome: Outcome, num_rows: int) -> None:
        self.rows[outcome] += num_rows


class FailingStore(LocalStore):
    """A folder that takes no log."""

    def put_if_absent(self, key: str, body: bytes | Path) -> bool:
        if key.startswith("log/"):
            raise StoreUnavailableError(f"{self.url} does not answer")
        return super().put_if_absent(key, body)


class HangingStore(LocalStore):
    """A folder that takes a log once it is told to."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.asked = threading.Event()
        self.answers = threading.Event()

    def put_if_absent(self, key: str, body: bytes | Path) -> bool:
        self.asked.set()
        assert self.answers.wait(30)
        return super().put_if_absent(key, body)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = open_store(str(tmp_path_factory.mktemp("log") / "store"))
    publish_tasks(store, evidence=True)
    return store


def row(number: int = 0, *, image: bytes | None = None) -> Row:
    return Row(
        time=1_800_000_000.25 + number, request=f"r{number}", version=3, label_space="labels", named=None,
        matched=("colours", "pair"), routed="colours", experts=("colours",), task=None, label="red", probability=0.5,
        familiarity=0.25, unknown=None, views=1, features=np.arange(4, dtype=np.float16) + number, image=image,
    )  # fmt: skip


def files(store: Store) -> list[pa.Table]:
    """The files of a log, in the order of their names."""
    return [pq.read_table(io.BytesIO(store.get(info.key))) for info in store.list("log/")]


def logged(store: Store) -> list[dict[str, Any]]:
    """All rows of a log, in the order in which they were answered."""
    return sorted((one for table in files(store) for one in table.to_pylist()), key=lambda one: one["time"])


def until(condition: Any) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def asked(store: Store, where: Store, *requests: tuple[tuple[str, ...], dict[str, Any]], **log: Any) -> list[Any]:
    """The answers of a service that logs all it is asked into another store."""
    answers: list[httpx.Response] = []

    async def story() -> None:
        async with PlainService(store, log_store=where, log=LogOptions(**{"sample": 1.0, **log})) as client:
            for names, data in requests:
                answers.append(await client.post("/v1/predict", files=form_of(pictures(*names)), data=data))
                assert answers[-1].status_code == 200, answers[-1].text

    asyncio.run(story())
    return answers


def test_a_file_has_every_column_of_its_rows_with_its_type() -> None:
    table = pq.read_table(io.BytesIO(to_parquet([row(0), row(1, image=b"png")])))
    assert table.schema.field("features").type == pa.list_(pa.float16(), 4)
    first, second = table.to_pylist()
    assert first["time"].timestamp() == 1_800_000_000.25
    assert [one["image"] for one in (first, second)] == [None, b"png"]
    assert (second["matched"], second["experts"], second["unknown"]) == (["colours", "pair"], ["colours"], None)
    assert second["features"] == [1, 2, 3, 4]


def test_a_row_says_what_was_asked_and_answered_and_has_the_base_s_features(store: Store, local_store: Store) -> None:
    cases: list[tuple[tuple[str, ...], dict[str, Any]]] = [
        (("red", "circle"), {}),
        (("red",), {"labels": ["red", "green", "cloud"]}),
        (("blue",), {"task": "colours"}),
    ]
    answers = asked(store, local_store, *cases)
    rows = logged(local_store)
    clip = Predictor(NodeCache(store)).shelf.base.clip
    expected = [
        (answer, one, features)
        for answer, (names, _) in zip(answers, cases, strict=True)
        for one, features in zip(
            answer.json()["predictions"], clip.image_features(clip.pixels(pictures(*names))), strict=True
        )
    ]
    for found, (answer, told, features) in zip(rows, expected, strict=True):
        assert found["request"] == answer.headers["X-Request-Id"]
        assert (found["version"], found["label_space"]) == (1, answer.json()["label_space"])
        assert (found["task"], found["label"], found["experts"]) == (told["task"], told["label"], told["experts"])
        assert found["probability"] == pytest.approx(told["probability"], abs=1e-6)
        assert found["familiarity"] == pytest.approx(told["familiarity"])
        assert found["matched"] == list(answer.json()["matched"])
        assert torch.tensor(found["features"]) == pytest.approx(features, abs=1e-3)
        assert (found["image"], found["views"]) == (None, 1)
    assert [one["named"] for one in rows] == [None, None, None, "colours"]
    assert [one["routed"] is None for one in rows] == [False, False, False, True]


def test_the_images_themselves_are_kept_only_where_that_is_asked_for(store: Store, local_store: Store) -> None:
    asked(store, local_store, (("red", "blue"), {}), images=True)
    assert [one["image"] for one in logged(local_store)] == [png(one) for one in pictures("red", "blue")]


@pytest.mark.parametrize("combine", ["mean", "max", "mean-feature"])
def test_views_of_one_object_are_one_row_of_the_first(store: Store, local_store: Store, combine: str) -> None:
    asked(store, local_store, (("red",) * 3, {"views": "many", "combine": combine}))
    clip = Predictor(NodeCache(store)).shelf.base.clip
    (one,) = logged(local_store)
    first = clip.image_features(clip.pixels(pictures("red")))[0]
    assert one["views"] == 3
    assert torch.tensor(one["features"]) == pytest.approx(first, abs=1e-3)


def test_a_sample_is_the_share_of_images_that_was_asked_for(store: Store, local_store: Store) -> None:
    async def story() -> None:
        service = PlainService(store, log_store=local_store, log=LogOptions(sample=0.25), max_images=400)
        async with service as client:
            assert service.recorder is not None
            service.recorder._random.seed(7)
            answer = await client.post("/v1/predict", files=form_of(pictures("red") * 300))
            assert answer.status_code == 200

    asyncio.run(story())
    assert 50 <= len(logged(local_store)) <= 100


def test_nothing_is_logged_unless_it_is_asked_for(local_store: Store) -> None:
    publish_tasks(local_store, evidence=True)

    async def story() -> None:
        service = PlainService(local_store)
        async with service as client:
            await client.post("/v1/predict", files=form_of(pictures("red")))
        assert service.recorder is None

    asyncio.run(story())
    assert list(local_store.list("log/")) == []


def test_a_store_that_takes_no_log_costs_rows_and_one_warning_and_no_request(
    store: Store, local_store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    failing, counted = FailingStore(local_store.url), Counted()

    async def story() -> None:
        service = PlainService(store, log_store=failing, metrics=counted, log=LogOptions(sample=1.0, flush_rows=1))
        async with service as client:
            for _ in range(3):
                answer = await client.post("/v1/predict", files=form_of(pictures("red", "blue")))
                assert answer.status_code == 200
                assert service.recorder is not None
                await service.recorder.flush()

    with caplog.at_level(logging.WARNING):
        asyncio.run(story())
    assert counted.rows == {"written": 0, "no_room": 0, "failed": 6}
    assert len([one for one in caplog.records if "request log" in one.getMessage()]) == 1


def test_a_base_that_fails_costs_the_rows_of_a_named_task_and_no_answer(store: Store, local_store: Store) -> None:
    counted = Counted()

    async def story() -> None:
        service = PlainService(store, log_store=local_store, metrics=counted, log=LogOptions(sample=1.0))

        async def broken(crops: np.ndarray) -> torch.Tensor:
            raise RuntimeError("out of memory")

        service.models.features = broken  # type: ignore[method-assign]
        async with service as client:
            answer = await client.post("/v1/predict", files=form_of(pictures("red")), data={"task": "colours"})
            assert answer.status_code == 200

    asyncio.run(story())
    assert counted.rows["failed"] == 1


def test_what_waits_stays_below_the_memory_that_it_may_take(local_store: Store) -> None:
    hanging, counted = HangingStore(local_store.url), Counted()
    options = LogOptions(sample=1.0, flush_rows=2, flush_s=LATER, memory=4 * row(image=b"x" * 5000).num_bytes)
    writer = LogWriter(hanging, options, counted)
    for number in range(2):
        writer.add([row(number, image=b"x" * 5000)])
    assert hanging.asked.wait(20)  # two rows are being written, and count until they are
    for number in range(2, 12):
        writer.add([row(number, image=b"x" * 5000)])
    assert counted.rows["no_room"] == 8
    hanging.answers.set()
    assert writer.flush(20)
    assert [one["request"] for one in logged(local_store)] == ["r0", "r1", "r2", "r3"]
    assert writer._bytes == 0
    writer.add([row(12)])  # there is room again
    writer.close(20)
    assert counted.rows == {"written": 5, "no_room": 8, "failed": 0}


def test_rows_are_written_by_number_by_time_and_when_the_service_stops(any_store: Store) -> None:
    by_number = LogWriter(any_store, LogOptions(sample=1.0, flush_rows=2, flush_s=LATER), Counted())
    by_number.add([row(0), row(1)])
    until(lambda: len(files(any_store)) == 1)
    by_time = LogWriter(any_store, LogOptions(sample=1.0, flush_s=0.02), Counted())
    by_time.add([row(2)])
    until(lambda: len(files(any_store)) == 2)
    at_the_end = LogWriter(any_store, LogOptions(sample=1.0, flush_s=LATER), Counted())
    at_the_end.add([row(3)])
    assert len(files(any_store)) == 2
    for writer in (by_number, by_time, at_the_end):
        writer.close(20)
    assert [one["request"] for one in logged(any_store)] == ["r0", "r1", "r2", "r3"]


def test_a_service_that_stops_does_not_wait_for_a_store_that_hangs(local_store: Store) -> None:
    hanging, counted = HangingStore(local_store.url), Counted()
    writer = LogWriter(hanging, LogOptions(sample=1.0, flush_rows=1, flush_s=LATER), counted)
    writer.add([row(0)])
    assert hanging.asked.wait(20)
    writer.add([row(1), row(2)])
    assert not writer.flush(0.01)
    writer.close(0.01)
    assert counted.rows["failed"] == 2
    writer.add([row(3)])
    assert counted.rows["no_room"] == 1
    hanging.answers.set()
    writer._thread.join(20)
    assert counted.rows["written"] == 1
