"""The HTTP face, over a service whose models are in this process: what is answered, and what is refused."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gzip
import io
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch

import serving
from cluster.commands.predict import predict
from fusion.answers.images import FORMATS
from fusion.answers.label_spaces import Job, Query
from fusion.answers.predictor import Predictor
from fusion.answers.view import View
from fusion.errors import BlobNotFoundError, ImageError
from fusion.store import Store, open_store
from fusion.store.node_cache import NodeCache
from fusion.versions.history import manifest_key
from fusion.versions.showcase import Sample, Showcase, Shown, show_in
from serving.dependencies import Caller, Scope, identify
from tests.fusion.answers.pictures import encoded, glyph, on_transparency, sixteen_bits, turned
from tests.serving.helpers import error_of, form_of, pictures, png, publish_tasks
from tests.serving.plain import PlainModels, PlainService

Story = Callable[[httpx.AsyncClient], Awaitable[None]]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = open_store(str(tmp_path_factory.mktemp("store")))
    publish_tasks(store)
    publish_tasks(store, {"late": ("green", "square")})
    return store


def run(store: Store, story: Story, **options: object) -> PlainService:
    service = PlainService(store, **options)

    async def whole() -> None:
        async with service as client:
            await story(client)

    asyncio.run(asyncio.wait_for(whole(), 60))
    return service


@pytest.mark.parametrize(
    "query",
    [
        Query("task", task="colours"),
        Query("labels", labels=("red", "circle", "a tree"), templates=("a {}.", "{}!"), top_k=2),
        Query("seen", top_k=2),
    ],
    ids=lambda query: query.label_space,
)
def test_every_label_space_answers_as_the_plain_predictor_does(store: Store, query: Query) -> None:
    images = pictures("red", "circle", "blue", "square")
    wanted = Predictor(NodeCache(store)).predict(images, query)
    data: dict[str, Any] = {"top_k": query.top_k, "labels": list(query.labels)}
    data |= {"task": query.task} if query.task else {}
    data |= {"templates": list(query.templates)} if query.label_space == "labels" else {}

    async def story(client: httpx.AsyncClient) -> None:
        answer = await client.post("/v1/predict", files=form_of(images), data=data)
        assert answer.status_code == 200, answer.text
        body = answer.json()
        assert body["label_space"] == query.label_space
        assert body["version"] == 2
        for i, (got, want) in enumerate(zip(body["predictions"], wanted, strict=True)):
            assert (got["image"], got["label"], got["task"]) == (f"{i}.png", want.label, want.task)
            assert got["experts"] == list(want.experts)
            assert got["probability"] == pytest.approx(want.probability, abs=1e-4)
            assert [(c["task"], c["label"]) for c in got["top"]] == [(task, label) for task, label, _ in want.top]

    run(store, story)


@pytest.mark.parametrize("how", ["mean", "max", "mean-feature"])
def test_views_of_one_object_are_answered_together_as_the_plain_predictor_does(store: Store, how: str) -> None:
    images = pictures("red", "circle", "blue")
    query = Query("task", task="colours", views=how)
    (wanted,) = Predictor(NodeCache(store)).predict(images, query)

    async def story(client: httpx.AsyncClient) -> None:
        data = {"task": "colours", "views": "many", "combine": how}
        body = (await client.post("/v1/predict", files=form_of(images), data=data)).json()
        (got,) = body["predictions"]
        assert (got["label"], got["views"], body["expert_forwards"]) == (wanted.label, 3, 3)
        assert got["probability"] == pytest.approx(wanted.probability, abs=1e-4)
        refused = await client.post("/v1/predict", files=form_of(images), data={"task": "colours", "combine": how})
        assert refused.status_code == 422
        assert "views=many" in error_of(refused)

    run(store, story)


def test_a_text_that_the_model_cuts_is_a_warning_in_the_answer(store: Store) -> None:
    long = " ".join(["very"] * 20) + " red"

    async def story(client: httpx.AsyncClient) -> None:
        for labels, warned in ((["red", "blue"], False), ([long, "blue"], True)):
            answer = await client.post("/v1/predict", files=form_of(pictures("red")), data={"labels": labels})
            warnings = answer.json()["warnings"]
            assert [("reads 16 tokens" in warning) for warning in warnings] == ([True] if warned else [])

    run(store, story)


def test_a_picture_is_answered_alike_however_it_is_stored(store: Store) -> None:
    stored, exif = turned(glyph(), 6)
    ways = {
        "plain": encoded(glyph(), "PNG"),
        "turned": encoded(stored, "PNG", exif=exif),
        "deep": encoded(sixteen_bits(glyph()), "PNG"),
        "transparent": encoded(on_transparency(glyph()), "PNG"),
        "palette": encoded(glyph().quantize(2), "GIF"),
        "one bit": encoded(glyph().convert("1"), "TIFF"),
    }

    async def story(client: httpx.AsyncClient) -> None:
        files = [("image", (name, body)) for name, body in ways.items()]
        answer = await client.post("/v1/predict", files=files, data={"task": "colours"})
        found = answer.json()["predictions"]
        assert [one["image"] for one in found] == list(ways)
        assert len({(one["label"], round(one["probability"], 5)) for one in found}) == 1

    run(store, story)


def test_only_what_a_label_space_needs_is_run(store: Store) -> None:
    async def story() -> None:
        service = PlainService(store)
        async with service as client:

            async def asked(**data: Any) -> tuple[list[str], list[str]]:
                service.models.asked.clear()
                answer = await client.post("/v1/predict", files=form_of(pictures("red")), data=data)
                return service.models.asked, answer.json()["predictions"][0]["experts"]

            assert await asked(task="colours") == (["colours"], ["colours"])  # the base does not run
            for data in ({"labels": ["a", "b"], "top_k": 2}, {"top_k": 2}):
                models, experts = await asked(**data)
                assert len(experts) == 2
                assert sorted(models) == sorted(["features", "base", *experts])

    asyncio.run(story())


GOOD = png(pictures("red")[0])


@pytest.mark.parametrize(
    ("images", "data", "status", "says"),
    [
        ([GOOD], {"task": "colour"}, 404, "did you mean colours"),
        ([GOOD], {"label_space": "task"}, 422, "needs the name of a task"),
        ([GOOD], {"label_space": "labels"}, 422, "at least one label"),
        ([GOOD], {"label_space": "seen", "task": "colours"}, 422, "takes no task"),
        ([GOOD], {"label_space": "everything"}, 422, "label_space"),
        ([GOOD], {"labels": ["a", "a"]}, 422, "'a' is given twice"),
        ([GOOD], {"labels": ["a", " "]}, 422, "label is empty"),
        ([GOOD], {"labels": ["Cat", "dog", "cat"]}, 422, "the labels 'Cat', 'cat' become the same tokens"),
        ([GOOD], {"labels": ["a", "b"], "templates": "no place"}, 422, "must have one"),
        ([GOOD], {"labels": "cat,dog"}, 422, "one label, 'cat,dog'"),
        ([GOOD], {"top_k": "none"}, 422, "top_k"),
        ([GOOD], {"top_k": "0"}, 422, "top_k"),
        ([GOOD], {"version": "77"}, 404, "no version 77"),
        ([GOOD], {"colour": "red"}, 422, "colour: there is no such field"),
        ([GOOD, b"not an image", GOOD], {}, 422, "image 2 of 3: 1.png is not an image"),
        ([GOOD, b"", GOOD[:60]], {}, 422, "image 2 of 3: 1.png is empty; image 3 of 3: 2.png is damaged"),
        ([GOOD] * 4, {}, 422, "more than 3 images"),
        ([], {"task": "colours"}, 415, "cannot be read"),
    ],
)
def test_a_bad_request_is_refused_with_the_reason_and_the_next_one_is_answered(
    store: Store, images: list[bytes], data: dict[str, Any], status: int, says: str
) -> None:
    async def story(client: httpx.AsyncClient) -> None:
        answer = await client.post("/v1/predict", files=form_of(images) or None, data=data)
        assert answer.status_code == status, answer.text
        assert says in error_of(answer)
        assert store.url not in error_of(answer)
        assert (await client.post("/v1/predict", files=form_of([GOOD]))).status_code == 200

    run(store, story, max_images=3)


def test_one_image_may_be_the_whole_body(store: Store) -> None:
    async def story(client: httpx.AsyncClient) -> None:
        async def send(body: bytes, kind: str, **fields: Any) -> httpx.Response:
            return await client.post("/v1/predict", content=body, headers={"Content-Type": kind}, params=fields)

        raw = await send(GOOD, "image/png", labels=["red", "blue"], top_k=2)
        form = await client.post("/v1/predict", files=form_of([GOOD]), data={"labels": ["red", "blue"], "top_k": "2"})
        assert raw.status_code == 200, raw.text
        got, want = raw.json()["predictions"][0], form.json()["predictions"][0]
        assert got == {**want, "image": "image"}
        assert "not an image" in error_of(await send(b"what", "image/png"))
        assert "`image`" in error_of(await send(GOOD, "application/x-www-form-urlencoded"))  # curl without -H

    run(store, story)


def test_a_malformed_form_is_refused(store: Store) -> None:
    async def story(client: httpx.AsyncClient) -> None:
        async def send(body: bytes, kind: str) -> httpx.Response:
            return await client.post("/v1/predict", content=body, headers={"Content-Type": kind})

        for answer in (
            await send(b"--x\r\n", "multipart/form-data"),
            await send(b"\x00\xff" * 40, "multipart/form-data; boundary=x"),
            await client.post("/v1/predict", files=[("image", (None, b"text"))]),
            await client.post("/v1/predict", files=[("picture", ("a.png", GOOD))]),
            await client.post("/v1/predict", files=form_of([GOOD]), params={"task": "colours"}),
        ):
            assert answer.status_code == 422, answer.text
            assert error_of(answer)

    run(store, story)


def test_a_body_above_the_limit_is_cut_off_whether_announced_or_not(store: Store) -> None:
    sent: list[int] = []

    async def endless() -> AsyncIterator[bytes]:
        for _ in range(1000):
            sent.append(1)
            yield b"x" * 1000

    async def story(client: httpx.AsyncClient) -> None:
        headers = {"Content-Type": "image/png"}
        announced = await client.post("/v1/predict", content=b"x" * 5001, headers=headers)
        streamed = await client.post("/v1/predict", content=endless(), headers=headers)
        for answer in (announced, streamed):
            assert answer.status_code == 413
            assert "5000" in error_of(answer)

    run(store, story, max_body_bytes=5000)


class SlowModels(PlainModels):
    """Models that hold every answer back until they are let go."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.go = asyncio.Event()

    async def features(self, crops: np.ndarray) -> torch.Tensor:
        await self.go.wait()
        return await super().features(crops)


def slow_service(store: Store, **options: object) -> tuple[PlainService, SlowModels]:
    models = SlowModels(store)
    return PlainService(store, models=models, **options), models


def test_overload_is_429_at_once_and_passes(store: Store) -> None:
    async def story() -> None:
        service, models = slow_service(store, max_queued_requests=2)
        async with service as client:
            waiting = [asyncio.create_task(client.post("/v1/predict", files=form_of([GOOD]))) for _ in range(2)]
            await asyncio.sleep(0.2)
            refused = await client.post("/v1/predict", files=form_of([GOOD]))
            assert refused.status_code == 429
            assert refused.headers["Retry-After"] == "1"
            assert "in flight" in error_of(refused)
            assert (await client.get("/healthz")).status_code == 200
            models.go.set()
            assert [(await answer).status_code for answer in waiting] == [200, 200]
            assert (await client.post("/v1/predict", files=form_of([GOOD]))).status_code == 200

    asyncio.run(story())


def test_an_answer_that_takes_too_long_is_504(store: Store) -> None:
    async def story() -> None:
        service, _ = slow_service(store, request_timeout_s=0.2)
        async with service as client:
            late = await client.post("/v1/predict", files=form_of([GOOD]))
            assert late.status_code == 504
            assert "within 0.2 s" in error_of(late)

    asyncio.run(story())


def test_a_bug_is_500_without_its_traceback(store: Store) -> None:
    class BrokenModels(PlainModels):
        async def features(self, crops: np.ndarray) -> torch.Tensor:
            raise RuntimeError("secret")

    async def story() -> None:
        service = PlainService(store, models=BrokenModels(store))
        async with service as client:
            answer = await client.post("/v1/predict", files=form_of([GOOD]))
            assert answer.status_code == 500
            assert "secret" not in error_of(answer)

    asyncio.run(story())


def test_a_version_can_be_pinned_and_one_that_gc_took_is_410(local_store: Store) -> None:
    publish_tasks(local_store, {"a": ("red", "blue")})
    publish_tasks(local_store, {"b": ("red", "green")})
    publish_tasks(local_store, {"c": ("red", "green")})

    async def story(client: httpx.AsyncClient) -> None:
        async def ask(version: int) -> httpx.Response:
            return await client.post("/v1/predict", files=form_of([GOOD]), data={"version": str(version)})

        old = await ask(2)
        assert old.json()["version"] == 2
        assert sorted(old.json()["predictions"][0]["experts"]) == ["a", "b"]
        local_store.delete(manifest_key(1))
        assert (await ask(1)).status_code == 410
        tasks = await client.get("/v1/tasks", params={"version": 2})
        assert [task["name"] for task in tasks.json()["tasks"]] == ["a", "b"]
        assert (await client.get("/v1/tasks", params={"version": 9})).status_code == 404
        assert (await client.get("/v1/tasks", params={"version": "x"})).status_code == 422

    run(local_store, story)


def test_a_request_whose_blobs_gc_took_starts_over_on_the_newest_version(local_store: Store) -> None:
    publish_tasks(local_store, {"a": ("red", "blue")})

    class GoneModels(PlainModels):
        async def expert_logits(self, view: View, job: Job, crops: np.ndarray, *, pool: bool = False) -> torch.Tensor:
            if view.version == 1:
                raise BlobNotFoundError("blobs/ab/abc")
            return await super().expert_logits(view, job, crops, pool=pool)

    async def story() -> None:
        service = PlainService(local_store, models=GoneModels(local_store))
        async with service as client:
            lost = await client.post("/v1/predict", files=form_of([GOOD]))
            assert lost.status_code == 503
            assert "blobs/" not in error_of(lost)  # where the store is, and what in it, is for the log
            publish_tasks(local_store, {"b": ("red", "green")})
            assert (await client.post("/v1/predict", files=form_of([GOOD]))).json()["version"] == 2
            pinned = await client.post("/v1/predict", files=form_of([GOOD]), data={"version": "1"})
            assert pinned.status_code == 410, pinned.text

    asyncio.run(story())


def test_versions_come_newest_first_in_pages(local_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.catalogue.PAGE", 2)
    for name in ("a", "b", "c"):
        publish_tasks(local_store, {name: ("red",)})

    async def story(client: httpx.AsyncClient) -> None:
        first = (await client.get("/v1/versions")).json()
        assert [v["version"] for v in first["versions"]] == [3, 2]
        assert first["serving"] == 3
        assert first["versions"][0]["num_tasks"] == 3
        assert first["versions"][0]["mode"] == {"name": "signed", "bits": 2}
        rest = (await client.get("/v1/versions", params={"before": first["before"]})).json()
        assert [v["version"] for v in rest["versions"]] == [1]
        assert rest["before"] is None

    run(local_store, story)


def test_readiness_waits_for_a_version_and_for_warm_models(store: Store, local_store: Store) -> None:
    async def story() -> None:
        service = PlainService(store)
        service.service.models_state = "starting"
        async with service as client:
            early = await client.get("/readyz")
            assert (early.status_code, early.json()["models"]) == (503, "starting")
            service.service.models_state = "ready"
            ready = await client.get("/readyz")
            assert ready.status_code == 200
            assert ready.json() == {"ready": True, "version": 2, "tasks": 4, "models": "ready", "problem": None}
            service.watcher.current = None
            assert (await client.get("/readyz")).status_code == 503
            assert (await client.get("/healthz")).status_code == 200
            nothing = await client.post("/v1/predict", files=form_of([GOOD]))
            assert nothing.status_code == 503
            assert nothing.headers["Retry-After"]

    asyncio.run(story())


def test_unknown_routes_and_methods_answer_in_the_same_shape(store: Store) -> None:
    async def story(client: httpx.AsyncClient) -> None:
        for answer, status in ((await client.get("/v1/nothing"), 404), (await client.get("/v1/predict"), 405)):
            assert answer.status_code == status
            assert "/docs" in error_of(answer)

    run(store, story)


def test_a_route_refuses_callers_without_its_scope_and_health_is_open_to_all(store: Store) -> None:
    async def story() -> None:
        service = PlainService(store)
        may: set[Scope] = set()
        service.http.dependency_overrides[identify] = lambda: Caller("guest", frozenset(may))
        async with service as client:
            routes = {
                Scope.PREDICT: lambda: client.post("/v1/predict", files=form_of([GOOD])),
                Scope.READ: lambda: client.get("/v1/tasks"),
            }
            for scope, ask in routes.items():
                refused = await ask()
                assert refused.status_code == 403
                assert f"guest may not do this: it requires the scope '{scope}'" in error_of(refused)
                may.add(scope)
                assert (await ask()).status_code == 200
                may.clear()
            paths: dict[str, Any] = (await client.get("/openapi.json")).json()["paths"]
            for path, methods in paths.items():
                for method in methods:
                    status = (await client.request(method, path)).status_code
                    assert status == (403 if path.startswith("/v1/") else 200), path

    asyncio.run(story())


def test_the_service_and_the_command_line_accept_the_same_images(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def encoded(kind: str, size: tuple[int, int] = (36, 36)) -> bytes:
        body = io.BytesIO()
        pictures("red")[0].resize(size).save(body, kind)
        return body.getvalue()

    async def story(client: httpx.AsyncClient) -> None:
        bodies = [encoded(kind) for kind in FORMATS]
        paths = [tmp_path / f"image.{kind}" for kind in FORMATS]
        for path, body in zip(paths, bodies, strict=True):
            path.write_bytes(body)
        predict(paths, store=store.url, as_json=True)
        told = json.loads(capsys.readouterr().out)["predictions"]
        answer = await client.post("/v1/predict", files=form_of(bodies))
        assert answer.status_code == 200, answer.text
        for mine, theirs in zip(answer.json()["predictions"], told, strict=True):
            assert mine["label"] == theirs["label"]
            assert mine["probability"] == pytest.approx(theirs["probability"], abs=1e-4)
        for name, body in (("a.eps", encoded("EPS")), ("thin.png", encoded("PNG", (100_000, 1)))):
            path = tmp_path / name
            path.write_bytes(body)
            answer = await client.post("/v1/predict", files={"image": (str(path), body)})
            with pytest.raises(ImageError) as refused:
                predict([path], store=store.url)
            assert (answer.status_code, error_of(answer)) == (422, str(refused.value))

    run(store, story)


def test_page_files_are_part_of_the_package() -> None:
    setuptools = pytest.importorskip("setuptools")
    root = Path(serving.__file__).parents[1]
    with contextlib.chdir(root):
        distribution = setuptools.Distribution()
        distribution.parse_config_files(["pyproject.toml"])
    packed = {path for pattern in distribution.package_data["serving"] for path in (root / "serving").glob(pattern)}
    assert packed == set((root / "serving" / "pages").iterdir())
    assert "serving.routes" in distribution.packages


def test_the_documentation_fetches_nothing_from_elsewhere_and_describes_every_field(store: Store) -> None:
    async def story(client: httpx.AsyncClient) -> None:
        answer = await client.get("/docs")
        page = answer.text
        assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        assert not re.findall(r"<style|<script>|style=|onclick=", page)  # the policy would block them
        assert not re.findall(r"""(?:src|href)=["']?(?:https?:)?//""", page)
        assert "://" not in page
        for kind, name in (("text/css", "pages/docs.css"), ("text/javascript", "pages/docs.js")):
            assert f'"{name}"' in page
            asset = await client.get(f"/{name}")
            assert asset.headers["Content-Type"] == f"{kind}; charset=utf-8"
            assert "://" not in asset.text
        for name in ("nothing.js", "docs.html", "..%2Fhttp.py"):
            assert (await client.get(f"/pages/{name}")).status_code == 404
        spec = (await client.get("/openapi.json")).json()
        paths = {"/v1/predict", "/v1/embed", "/v1/tasks", "/v1/versions", "/v1/showcase", "/healthz", "/readyz"}
        assert paths | {"/v1/versions/rollback", "/v1/tasks/{name}"} < set(spec["paths"])
        assert spec["components"]["securitySchemes"]["token"]["scheme"] == "bearer"
        predict = spec["paths"]["/v1/predict"]["post"]
        form = predict["requestBody"]["content"]["multipart/form-data"]["schema"]["properties"]
        names = ["label_space", "task", "labels", "templates", "top_k", "abstain", "views", "combine", "version"]
        assert sorted(form) == sorted(["image", *names])
        assert all(field["description"] for field in form.values())
        assert [parameter["name"] for parameter in predict["parameters"]] == names
        assert "429" in predict["responses"]

    run(store, story)


def test_figures_and_samples_are_shown_of_the_expert_that_was_measured(tmp_path: Path) -> None:
    store, image = open_store(str(tmp_path / "store")), png(pictures("red")[0])
    manifest = publish_tasks(store)
    samples = (Sample("red", "image/png", image), Sample("red", "text/html", b"<script>alert(1)</script>"))
    shown = {name: Shown(entry.expert_sha256, 40, 25.0, 92.5, samples) for name, entry in manifest.state.tasks.items()}
    shown["gone"] = Shown("0" * 64, 9, 1.0, 2.0)
    shown["pair"] = Shown("0" * 64, 9, 1.0, 2.0)
    show_in(store, Showcase(manifest.version, shown))

    async def story(client: httpx.AsyncClient) -> None:
        body = (await client.get("/v1/showcase")).json()
        assert body["measured"] == 1
        assert set(body["tasks"]) == {"colours", "shapes"}, "neither a removed task nor another expert's figures"
        (sample,) = body["tasks"]["colours"]["samples"]
        answer = await client.get(f"/{sample['path']}")
        assert (answer.content, answer.headers["Content-Type"]) == (image, "image/png")
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        for nothing in ("colours/1", "colours/2", "nobody/0"):
            answer = await client.get(f"/v1/showcase/{nothing}")
            assert answer.status_code == 404
            assert "/v1/showcase lists" in error_of(answer)

    run(store, story)


def test_a_damaged_showcase_costs_the_service_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = open_store(str(tmp_path / "store"))
    publish_tasks(store)
    store.put_if_absent("showcase/00000001-a.json", b"{")

    async def story(client: httpx.AsyncClient) -> None:
        assert (await client.get("/v1/showcase")).json() == {"measured": None, "tasks": {}}

    run(store, story)
    assert "showcase/00000001-a.json" in caplog.text


def test_a_problem_names_its_request_in_the_answer_and_in_the_log(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    class GoneModels(PlainModels):
        async def features(self, crops: np.ndarray) -> torch.Tensor:
            raise BlobNotFoundError("blobs/ab/abc")

    async def story() -> None:
        service = PlainService(store, models=GoneModels(store))
        async with service as client:
            with caplog.at_level("WARNING", "serving.error_handlers"):
                answer = await client.post("/v1/predict", files=form_of([GOOD]))
            assert error_of(answer)
            assert answer.json()["instance"] in caplog.text
            assert (await client.get("/healthz")).headers["X-Request-Id"] != answer.headers["X-Request-Id"]

    asyncio.run(story())


def test_every_mistake_is_listed_and_a_refused_method_says_which_are_allowed(store: Store) -> None:
    async def story(client: httpx.AsyncClient) -> None:
        answer = await client.post("/v1/predict", files=form_of([GOOD]), data={"top_k": "0", "colour": "red"})
        assert {one["field"] for one in answer.json()["errors"]} == {"top_k", "colour"}
        assert answer.json()["type"] == "urn:condu:RequestError"
        assert (await client.get("/v1/tasks", params={"version": "x"})).json()["errors"][0]["field"] == "version"
        refused = await client.get("/v1/predict")
        assert (refused.status_code, refused.headers["Allow"]) == (405, "OPTIONS, POST")
        assert (await client.post("/healthz")).headers["Allow"] == "GET, HEAD, OPTIONS"
        asked = await client.options("/v1/predict")
        assert (asked.status_code, asked.headers["Allow"], asked.content) == (204, "OPTIONS, POST", b"")
        assert "Access-Control-Allow-Origin" not in asked.headers
        assert (await client.options("/v1/nothing")).status_code == 404

    run(store, story)


def test_pages_of_other_origins_ask_where_the_configuration_lets_them(store: Store) -> None:
    preflight = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}

    async def story(client: httpx.AsyncClient) -> None:
        there = {"Origin": "https://app.example.com"}
        asked = await client.options("/v1/predict", headers=there | preflight)
        assert asked.status_code == 200
        assert asked.headers["Access-Control-Allow-Origin"] == "https://app.example.com"
        assert "X-Request-Id" in asked.headers
        for answer in (
            await client.post("/v1/predict", files=form_of([GOOD]), headers=there),
            await client.post("/v1/predict", headers=there),
        ):
            assert answer.headers["Access-Control-Allow-Origin"] == "https://app.example.com"
            assert "X-Request-Id" in answer.headers["Access-Control-Expose-Headers"]
        elsewhere = {"Origin": "https://evil.example.com"}
        assert (await client.options("/v1/predict", headers=elsewhere | preflight)).status_code == 400
        answer = await client.post("/v1/predict", files=form_of([GOOD]), headers=elsewhere)
        assert "Access-Control-Allow-Origin" not in answer.headers
        # without tokens no page may publish, wherever it comes from
        assert (await client.delete("/v1/tasks/late", headers=there)).status_code == 403

    run(store, story, cors=("https://app.example.com",))


def test_a_body_may_come_in_gzip_within_the_limits(store: Store) -> None:
    image = {"Content-Type": "image/png", "Content-Encoding": "gzip"}

    async def story(client: httpx.AsyncClient) -> None:
        plain = await client.post("/v1/predict?task=colours", content=GOOD, headers={"Content-Type": "image/png"})
        whole = gzip.compress(GOOD)
        two_members = gzip.compress(GOOD[:50]) + gzip.compress(GOOD[50:])
        form = client.build_request("POST", "/v1/predict", files=form_of([GOOD]), data={"task": "colours"})
        packed_form = gzip.compress(form.read())
        for answer in (
            await client.post("/v1/predict?task=colours", content=whole, headers=image),
            await client.post("/v1/predict?task=colours", content=two_members, headers=image),
            await client.post(
                "/v1/predict",
                content=packed_form,
                headers={"Content-Type": form.headers["Content-Type"], "Content-Encoding": "x-gzip"},
            ),
            await client.post(
                "/v1/predict",
                content=gzip.compress(
                    json.dumps({"images": [{"b64": base64.b64encode(GOOD).decode()}], "task": "colours"}).encode()
                ),
                headers={"Content-Type": "application/json", "Content-Encoding": "GZIP"},
            ),
        ):
            assert answer.status_code == 200, answer.text
            assert answer.json()["predictions"][0]["top"] == plain.json()["predictions"][0]["top"]
        bomb = gzip.compress(bytes(50_000_000))
        assert len(bomb) < 100_000
        for body, status, says in (
            (bomb, 413, "more than 100000 bytes"),
            (GOOD, 422, "is not"),
            (whole[:-20], 422, "ends too early"),
        ):
            answer = await client.post("/v1/predict", content=body, headers=image)
            assert (answer.status_code, says in error_of(answer)) == (status, True), answer.text
        answer = await client.post("/v1/predict", content=whole, headers=image | {"Content-Encoding": "br"})
        assert (answer.status_code, answer.headers["Accept-Encoding"]) == (415, "gzip")

    run(store, story, max_body_bytes=100_000)


def test_health_may_be_asked_by_head(store: Store) -> None:
    async def story(client: httpx.AsyncClient) -> None:
        for path in ("/healthz", "/readyz"):
            answer = await client.head(path)
            assert (answer.status_code, answer.content) == (200, b"")

    run(store, story)


def test_repeated_fields_may_have_brackets_and_an_empty_one_is_none(store: Store) -> None:
    async def story(client: httpx.AsyncClient) -> None:
        async def space(**data: Any) -> str:
            answer = await client.post("/v1/predict", files=form_of([GOOD]), data=data)
            assert answer.status_code == 200, answer.text
            found: str = answer.json()["label_space"]
            return found

        assert await space(**{"labels[]": ["red", "blue"]}) == "labels"
        assert await space(labels="", templates="") == "seen"
        assert await space(labels="", task="colours") == "task"

    run(store, story)
