"""The default rule on real Serve replicas: who is asked, and the same answers as the plain predictor's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from fusion.answers.label_spaces import Query
from fusion.answers.predictor import Predictor
from fusion.store import open_store
from fusion.store.address import StoreAddress
from fusion.store.node_cache import NodeCache
from serving.app import APP_NAME, start, stop
from serving.options import ServiceOptions
from serving.status import REPLICA
from tests.serving.helpers import form_of, free_port, pictures, publish_tasks
from tests.tiny import COLOURS, SHAPES

pytestmark = pytest.mark.usefixtures("ray_session")

NAMES = (*COLOURS, *SHAPES) * 9
TASKS = {"colours": tuple(COLOURS), "shapes": SHAPES, "pair": ("red", "circle", "tree")}


class Running:
    """A service of three tasks, one of which has no expert, and the plain predictor of the same store."""

    def __init__(self, url: str, port: int) -> None:
        self.predictor = Predictor(NodeCache(open_store(url)))
        self._client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False)

    def predict(self, *names: str, **data: Any) -> dict[str, Any]:
        response = self._client.post("/v1/predict", files=form_of(pictures(*names)), data=data)
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = response.json()
        return answer

    def images(self) -> int:
        """Forwards of images, by the base and by experts, since the replica started."""
        from ray import serve

        stats: dict[str, Any] = serve.get_deployment_handle(REPLICA, APP_NAME).stats.remote().result(timeout_s=20)
        return int(stats["images"])


@pytest.fixture(scope="module")
def service(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    store = open_store(str(tmp_path_factory.mktemp("store")))
    publish_tasks(store, TASKS, evidence=True, heads=["shapes"])
    options = ServiceOptions(address=StoreAddress(store.url), port=free_port(), num_cpus=0.5)
    start(options)
    try:
        yield Running(store.url, options.port)
    finally:
        stop()


def test_where_no_label_is_known_the_base_answers_bit_for_bit_and_no_expert_is_asked(service: Running) -> None:
    before, labels = service.images(), ("tree house", "cloud", "sea")
    answer = service.predict("red", labels=list(labels))
    assert (answer["expert_forwards"], answer["matched"]) == (0, {})
    base = service.predictor.shelf.base
    features = base.clip.image_features(base.clip.pixels(pictures("red")))
    expected = base.feature_logits(features, labels, ("a photo of a {}.",)).softmax(1)[0]
    found = {one["label"]: one["probability"] for one in answer["predictions"][0]["top"]}
    assert found == dict(zip(labels, expected.tolist(), strict=True))
    assert service.images() == before + 1  # the base's


def test_one_expert_at_most_sees_an_image_and_the_answer_says_how_many_did(service: Running) -> None:
    before = service.images()
    answer = service.predict(*NAMES[:7])
    assert 7 + answer["expert_forwards"] == service.images() - before <= 14
    assert answer["expert_forwards"] == sum(len(one["experts"]) for one in answer["predictions"])
    assert all(one["rule"] == "matched" and len(one["experts"]) <= 1 for one in answer["predictions"])


@pytest.mark.parametrize(
    "query",
    [
        Query("task", task="colours"),
        Query("task", task="shapes"),
        Query("labels", labels=("RED", "green", "circle", "square", "a tree"), templates=("a {}.",)),
        Query("seen", abstain=0.2),
    ],
    ids=["task", "task without an expert", "labels", "seen"],
)
def test_the_probabilities_are_the_plain_predictor_s(service: Running, query: Query) -> None:
    groups = [NAMES[start : start + 9] for start in range(0, len(NAMES), 9)]
    wanted = [one for names in groups for one in service.predictor.predict(pictures(*names), query)]
    data: dict[str, Any] = {"task": query.task} if query.task else {}
    data |= {"labels": list(query.labels), "templates": list(query.templates)} if query.labels else {}
    data |= {"abstain": str(query.abstain)} if query.abstain else {}
    answers = [service.predict(*names, **data) for names in groups]
    for answer in answers:
        assert answer["matched"] == {task: dict(found) for task, found in wanted[0].matched.items()}
    found = [one for answer in answers for one in answer["predictions"]]
    for got, want in zip(found, wanted, strict=True):
        assert (got["label"], got["task"], got["experts"]) == (want.label, want.task, list(want.experts))
        assert (got["unknown"], got["familiarity"]) == (want.unknown, pytest.approx(want.familiarity, abs=1e-5))
        mine = {(one["task"], one["label"]): one["probability"] for one in got["top"]}
        assert mine == pytest.approx({(task, label): p for task, label, p in want.top}, abs=1e-5)


def test_naming_a_task_costs_no_more_for_the_others_and_a_task_without_an_expert_none(service: Running) -> None:
    before = service.images()
    assert service.predict("circle", "square", task="shapes")["expert_forwards"] == 0
    assert service.images() == before + 2  # the base's
    assert service.predict("red", task="colours")["expert_forwards"] == 1
    assert service.images() == before + 3
