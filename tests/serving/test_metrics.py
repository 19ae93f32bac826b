"""What a service tells of itself: its stages, its batches, what it reads and keeps, how familiar images are."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import pytest

from fusion.store import Store, open_store
from fusion.versions.history import Versions
from serving import stages
from serving.metrics import Metrics, Model
from serving.stages import Stage, Stopwatch, waited
from tests.serving.helpers import form_of, pictures, publish_tasks
from tests.serving.plain import PlainService

ALL_STAGES = get_args(Stage)


class Noted(Metrics):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.answers: list[tuple[str, dict[Stage, float], list[float]]] = []
        self.seconds: list[float] = []
        self.forwards: list[tuple[Model, int, int]] = []
        self.reads: list[int] = []
        self.texts = [0, 0]
        self.text_bytes = 0

    def predicted(self, label_space: str, seconds: float, num_images: int, expert_forwards: int) -> None:
        self.seconds.append(seconds)

    def answered(self, label_space: str, stages: Mapping[Stage, float], familiarity: Sequence[float]) -> None:
        self.answers.append((label_space, dict(stages), list(familiarity)))

    def trigger_read(self, seconds: float, num_bytes: int) -> None:
        self.reads.append(num_bytes)

    def forward(self, model: Model, num_images: int, num_tasks: int) -> None:
        self.forwards.append((model, num_images, num_tasks))

    def texts_asked(self, num_kept: int, num_new: int) -> None:
        self.texts = [self.texts[0] + num_kept, self.texts[1] + num_new]

    def texts_kept(self, num_bytes: int) -> None:
        self.text_bytes = num_bytes


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = open_store(str(tmp_path_factory.mktemp("metrics") / "store"))
    publish_tasks(store, evidence=True, heads=["shapes"])
    return store


def asked(store: Store, *requests: tuple[tuple[str, ...], dict[str, Any]]) -> Noted:
    """What a service that answers these requests, one after the other, tells."""
    noted = Noted()

    async def story() -> None:
        async with PlainService(store, metrics=noted) as client:
            for names, data in requests:
                answer = await client.post("/v1/predict", files=form_of(pictures(*names)), data=data)
                assert answer.status_code == 200, answer.text

    asyncio.run(story())
    return noted


def test_the_stages_of_an_answer_are_those_that_it_went_through_and_no_longer_than_it_took(store: Store) -> None:
    without_base = set(ALL_STAGES) - {"base"}
    cases: list[tuple[dict[str, Any], set[str]]] = [
        ({}, set(ALL_STAGES)),
        ({"labels": ["red", "green", "cloud"]}, set(ALL_STAGES)),
        ({"task": "colours"}, without_base),
        ({"task": "shapes"}, set(ALL_STAGES)),  # which has no expert: the base answers
    ]
    noted = asked(store, *((("red", "circle"), data) for data, _ in cases))
    for (space, found, _), (data, expected), seconds in zip(noted.answers, cases, noted.seconds, strict=True):
        assert set(found) == expected, data
        assert space == ("task" if "task" in data else "labels" if data else "seen")
        assert min(found.values()) >= 0
        assert sum(found.values()) <= seconds + 1e-3  # answers round their seconds


def test_what_a_stage_waited_for_the_models_is_queue_and_side_by_side_the_shortest_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = iter([10.0, 17.0, 20.0, 21.0])
    monkeypatch.setattr(stages.time, "perf_counter", lambda: next(clock))

    async def call(seconds: float) -> None:
        waited(seconds)

    async def story() -> Stopwatch:
        watch = Stopwatch()
        with watch.stage("experts"):
            await asyncio.gather(call(3.0), call(2.0))
        with watch.stage("answer"):
            pass
        waited(5.0)  # part of no stage
        return watch

    assert asyncio.run(story()).seconds == {"queue": 2.0, "experts": 5.0, "answer": 1.0}


def test_images_are_counted_by_the_forward_and_a_wait_is_told_to_the_request_that_waited(store: Store) -> None:
    noted = asked(store, (("red",) * 3, {"task": "colours"}), (("red",) * 18, {"task": "shapes"}))
    assert noted.forwards == [("expert", 3, 1), ("base", 16, 0), ("base", 2, 0)]
    assert all(found["queue"] > 0 for _, found, _ in noted.answers)


def test_a_trigger_is_read_once_however_often_its_expert_is_asked(store: Store) -> None:
    noted = asked(store, *[(("red",), {"task": task}) for task in ("colours", "pair", "colours")])
    newest = Versions(store).newest()
    assert newest is not None
    assert len(noted.reads) == 2
    listed = {info.bytes for info in store.list("blobs/")}
    assert set(noted.reads) <= listed
    assert min(noted.reads) > 1000


def test_texts_are_hits_once_they_were_encoded(store: Store) -> None:
    once = asked(store, (("red",), {"task": "colours"}))
    assert (once.texts, once.text_bytes > 0) == ([0, 4], True)
    twice = asked(store, (("red",), {"task": "colours"}), (("red",), {"task": "colours"}))
    assert twice.texts == [4, 4]
    labels = ["a cloud", "the sea"]
    more = asked(store, (("red",), {"labels": labels}), (("red",), {"labels": [*labels, "a hill"]}))
    assert more.texts == [2, 3]


def test_familiarity_is_told_of_every_image_whose_task_is_not_named(store: Store) -> None:
    noted = asked(store, (("red", "circle", "tree"), {}), (("red",), {"task": "colours"}))
    (_, _, seen), (_, _, named) = noted.answers
    assert (len(seen), named) == (3, [])
    assert all(0 <= value <= 1 for value in seen)
