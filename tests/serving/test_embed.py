"""`POST /v1/embed` over HTTP, and JSON bodies."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from fusion.answers.predictor import ModelShelf
from fusion.answers.view import ViewLoader
from fusion.store import Store, open_store
from fusion.store.node_cache import NodeCache
from fusion.versions.history import Versions
from tests.serving.helpers import error_of, form_of, pictures, png, publish_tasks
from tests.serving.plain import PlainService

Story = Callable[[httpx.AsyncClient], Awaitable[None]]
TEXTS = ["a red kite", "circle"]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = open_store(str(tmp_path_factory.mktemp("store")))
    publish_tasks(store, evidence=True, heads=("pair",))
    return store


def run(store: Store, story: Story, **options: object) -> None:
    async def whole() -> None:
        async with PlainService(store, **options) as client:
            await story(client)

    asyncio.run(asyncio.wait_for(whole(), 60))


def _features(store: Store, task: str | None) -> tuple[torch.Tensor, torch.Tensor]:
    """What the model's encoders give, not unit, of two pictures and of `TEXTS`."""
    manifest = Versions(store).newest()
    assert manifest is not None
    cache = NodeCache(store)
    view = ViewLoader(cache).load(manifest)
    shelf = ModelShelf(cache, manifest)
    model = shelf.expert(view, task) if task and view.tasks[task].has_expert else shelf.base
    pixels = shelf.base.clip.pixels(pictures("red", "circle"))
    return model.clip.image_features(pixels, unit=False), model.text().text_features(TEXTS, unit=False)


@pytest.mark.parametrize("task", [None, "colours", "pair"], ids=["base", "expert", "a task without an expert"])
@pytest.mark.parametrize("unit", [True, False], ids=["unit", "as they are"])
def test_embeddings_are_the_models_own(store: Store, task: str | None, unit: bool) -> None:
    images, texts = _features(store, task)
    data: dict[str, Any] = {"texts": TEXTS, "normalize": str(unit).lower(), **({"task": task} if task else {})}

    async def story(client: httpx.AsyncClient) -> None:
        answer = await client.post("/v1/embed", files=form_of(pictures("red", "circle")), data=data)
        assert answer.status_code == 200, answer.text
        body = answer.json()
        assert body["model"].startswith("colours@" if task == "colours" else "base")
        assert [one["image"] for one in body["images"]] == ["0.png", "1.png"]
        assert [one["text"] for one in body["texts"]] == TEXTS
        for got, wanted in ((body["images"], images), (body["texts"], texts)):
            rows = torch.tensor([one["embedding"] for one in got])
            assert rows.shape[1] == body["dimensions"]
            torch.testing.assert_close(rows, normalize(wanted, dim=-1) if unit else wanted, atol=1e-5, rtol=1e-4)

    run(store, story)


@pytest.mark.parametrize(("encoding", "kind", "bound"), [("float32", "<f4", 0.0), ("float16", "<f2", 1e-3)])
def test_numbers_may_come_as_base64(store: Store, encoding: str, kind: str, bound: float) -> None:
    async def story(client: httpx.AsyncClient) -> None:
        rows = {}
        for how in ("list", encoding):
            answer = await client.post("/v1/embed", json={"texts": TEXTS, "encoding": how})
            rows[how] = [one["embedding"] for one in answer.json()["texts"]]
        found = np.stack([np.frombuffer(base64.b64decode(text), kind) for text in rows[encoding]])
        assert np.abs(found.astype(np.float64) - np.array(rows["list"])).max() <= bound

    run(store, story)


def test_labels_are_the_zero_shot_weights_of_their_templates(store: Store) -> None:
    templates = ("a {} picture.", "{}!")
    shelf = ModelShelf(NodeCache(store), Versions(store).newest())  # type: ignore[arg-type]
    wanted = shelf.base.class_features(("red", "a boat"), templates)

    async def story(client: httpx.AsyncClient) -> None:
        answer = await client.post("/v1/embed", json={"labels": ["red", "a boat"], "templates": list(templates)})
        rows = torch.tensor([one["embedding"] for one in answer.json()["texts"]])
        torch.testing.assert_close(rows, wanted, atol=1e-5, rtol=1e-4)

    run(store, story)


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        ({}, 422, "nothing to embed"),
        ({"texts": ["a"], "labels": ["b"]}, 422, "contradict"),
        ({"texts": ["a"], "templates": ["{}"]}, 422, "templates are for labels"),
        ({"labels": ["a"], "templates": ["no braces"]}, 422, "no braces"),
        ({"texts": ["a", " "]}, 422, "empty"),
        ({"texts": ["a"], "task": "colour"}, 404, "colours"),
        ({"texts": ["a"], "version": 99}, 404, "99"),
        ({"texts": ["a"], "encoding": "float64"}, 422, "encoding"),
        ({"texts": "a"}, 422, "texts"),
        ({"texts": ["a"] * 5000}, 422, "4096"),
        ({"text": ["a"]}, 422, "there is no such field"),
    ],
)
def test_what_can_not_be_embedded_says_why(store: Store, body: dict[str, Any], status: int, says: str) -> None:
    async def story(client: httpx.AsyncClient) -> None:
        answer = await client.post("/v1/embed", json=body)
        assert answer.status_code == status
        assert says in error_of(answer)

    run(store, story)


def test_a_text_that_is_cut_is_a_warning(store: Store) -> None:
    async def story(client: httpx.AsyncClient) -> None:
        answer = await client.post("/v1/embed", json={"texts": ["very " * 40]})
        assert "cuts" in answer.json()["warnings"][0]

    run(store, story)


def test_json_predicts_as_a_form_does(store: Store) -> None:
    red, circle = (png(one) for one in pictures("red", "circle"))
    url = f"data:image/png;base64,{base64.b64encode(circle).decode()}"
    images = [{"b64": base64.b64encode(red).decode(), "name": "0.png"}, {"url": url, "name": "1.png"}]

    async def story(client: httpx.AsyncClient) -> None:
        by_form = await client.post("/v1/predict", files=form_of([red, circle]), data={"labels": ["red", "a boat"]})
        by_json = await client.post("/v1/predict", json={"images": images, "labels": ["red", "a boat"]})
        assert by_json.status_code == 200, by_json.text
        assert by_json.json()["predictions"] == by_form.json()["predictions"]

    run(store, story)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"{", "not valid JSON"),
        (b"[1]", "must be a JSON object"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"images": 3}', "images must be a list"),
        (b'{"images": []}', "there is no image"),
        (b'{"images": [{}]}', "images.0 needs either"),
        (b'{"images": [{"b64": "aa", "url": "data:,a"}]}', "images.0 needs either"),
        (b'{"images": [{"b64": "!!"}]}', "images.0 is not valid base64"),
        (b'{"images": [{"file": "/etc/passwd"}]}', "images.0.file: there is no such field"),
        (b'{"images": [{"url": "http://169.254.169.254/latest"}]}', "this service fetches no URL"),
        (b'{"images": [{"url": "file:///etc/passwd"}]}', "only http://, https:// and s3:// are fetched"),
        (b'{"images": [{"url": "data:image/png,abc"}]}', "must be in base64"),
        (b'{"images": [{"b64": "aGk="}], "labels": "red,blue"}', "labels"),
        (b'{"images": [{"b64": "aGk="}], "task": 3}', "task"),
        (b'{"images": [{"b64": "aGk="}], "task": "colours"}', "image-1"),
    ],
)
def test_a_json_body_that_can_not_be_used_says_why(store: Store, body: bytes, says: str) -> None:
    async def story(client: httpx.AsyncClient) -> None:
        answer = await client.post("/v1/predict", content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code == 422
        assert says in error_of(answer)

    run(store, story)
