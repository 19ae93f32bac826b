"""The models of a replica: every expert is the plain predictor's, mixed in one forward where it can be, in a budget."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import torch

from fusion.answers.clip import build_clip
from fusion.answers.label_spaces import Query
from fusion.answers.predictor import Predictor
from fusion.fuse import ExpertToFuse, fuse_experts
from fusion.store import Store, open_store
from fusion.store.blobs import new_nonce, put_file, scratch_file
from fusion.store.node_cache import NodeCache
from fusion.tensors import write_tensors
from serving.costs import Costs, Payoff
from tests.fusion.answers.test_folding import TIMM_CFG
from tests.serving.helpers import form_of, pictures, publish_tasks
from tests.serving.plain import PlainService
from tests.tiny import MODEL_CFG, tiny_base

TASKS = ("a", "b", "c", "d")
CLASSES, TEMPLATES = ("red", "green", "circle"), ("a {} picture.",)


@pytest.fixture(scope="module", params=[MODEL_CFG, TIMM_CFG], ids=["ViT", "timm"])
def components(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store whose experts are kept as components."""
    folder: Path = tmp_path_factory.mktemp("models")
    store = open_store(str(folder / "store"))
    base = tiny_base(store, model_cfg=request.param)
    clip = build_clip(base, NodeCache(store).tensors(base.weights))
    experts = []
    for number, task in enumerate(TASKS):
        noise = torch.Generator().manual_seed(number)
        moved = dict(clip.model.state_dict())
        for name, value in clip.model.named_parameters():
            size = (len(value), value[0].numel()) if value.dim() > 1 else None
            sides = [torch.randn(length, 2, generator=noise) for length in size] if size else None
            delta = (sides[0] @ sides[1].T).reshape(value.shape) if sides else torch.randn(value.shape, generator=noise)
            moved[name] = (value + 0.05 * delta).contiguous()
        with scratch_file(store) as path:
            write_tensors(path, {"prototypes": torch.nn.functional.normalize(torch.randn(3, 32), dim=1)})
            prototypes = put_file(store, path, nonce=new_nonce())
        write_tensors(folder / f"{task}.safetensors", moved)
        experts.append(ExpertToFuse(task, folder / f"{task}.safetensors", CLASSES, TEMPLATES, prototypes))
    fuse_experts(NodeCache(store), base, experts, mode={"name": "lowrank"})
    return store


def test_images_of_many_tasks_share_forwards_and_each_answer_is_the_plain_predictors(components: Store) -> None:
    predictor, names = Predictor(NodeCache(components)), ("red", "circle", "blue")
    wanted = {task: predictor.predict(pictures(*names), Query("task", task=task)) for task in TASKS}

    async def story() -> None:
        service = PlainService(components)
        forwards: list[tuple[int, int]] = []
        service.models._metrics.forward = (  # type: ignore[method-assign]
            lambda model, num_images, num_tasks: forwards.append((num_images, num_tasks))
        )
        async with service as client:

            async def ask(task: str) -> None:
                answer = await client.post("/v1/predict", files=form_of(pictures(*names)), data={"task": task})
                assert answer.status_code == 200, answer.text
                for got, want in zip(answer.json()["predictions"], wanted[task], strict=True):
                    mine = {one["label"]: one["probability"] for one in got["top"]}
                    assert mine == pytest.approx({label: p for _, label, p in want.top}, abs=1e-4)

            await asyncio.gather(*(ask(task) for task in TASKS * 6))
        counts = service.models.batcher.counts
        assert counts.images == 24 * 3
        assert counts.batches <= counts.images / 4  # tasks apart, they would have made more
        assert sum(num_images for num_images, _ in forwards) == counts.images
        assert 1 < max(num_tasks for _, num_tasks in forwards) <= len(TASKS)
        assert sorted(key.partition("@")[0] for key in service.models.stats()["experts"]) == sorted(TASKS)

    asyncio.run(story())


def test_an_expert_that_is_asked_for_often_is_built_as_well_and_answers_the_same(components: Store) -> None:
    wanted = Predictor(NodeCache(components)).predict(pictures("red"), Query("task", task="a"))[0]

    async def story() -> None:
        service = PlainService(components)
        models = service.models
        # a question by a live expert loses 0.3 s: with the second, building would have paid
        models._costs, models._payoff = Costs(built=(0.0, 0.0), live=(0.3, 0.0), per_expert=0.0), Payoff(0.5)
        async with service as client:

            async def ask(task: str) -> None:
                answer = await client.post("/v1/predict", files=form_of(pictures("red")), data={"task": task})
                assert answer.status_code == 200, answer.text
                if task == "a":
                    mine = {one["label"]: one["probability"] for one in answer.json()["predictions"][0]["top"]}
                    assert mine == pytest.approx({label: p for _, label, p in wanted.top}, abs=1e-4)

            for task in ("a", "b", "a", "a"):
                await ask(task)
                await asyncio.gather(*models._building)
            assert [key.partition("@")[0] for key in models.stats()["built"]] == ["a"]
            calls: list[str] = []
            alone = models._encode_live
            models._encode_live = lambda items, *, unit: calls.append("live") or alone(items, unit=unit)  # type: ignore
            await ask("a")
            assert not calls
            await ask("b")
            assert calls

    asyncio.run(story())


def test_an_expert_kept_as_components_takes_no_model_of_its_own(components: Store) -> None:
    async def story() -> None:
        service = PlainService(components)
        async with service as client:
            await client.post("/v1/predict", files=form_of(pictures("red")), data={"task": "a"})
        shelf = service.models.shelf
        visual: torch.nn.Module = shelf.base.clip.model.visual  # type: ignore[assignment]
        assert 0 < shelf.experts.used_bytes < sum(one.nbytes for one in visual.state_dict().values()) / 4

    asyncio.run(story())


def test_experts_stay_within_the_budget_and_a_burst_on_a_cold_one_builds_it_once(local_store: Store) -> None:
    publish_tasks(local_store)
    loads: list[float] = []

    async def story() -> None:
        service = PlainService(local_store, expert_memory=600_000)
        service.models._metrics.expert_loaded = loads.append  # type: ignore[method-assign]
        async with service as client:

            async def ask(task: str) -> None:
                answer = await client.post("/v1/predict", files=form_of(pictures("red")), data={"task": task})
                assert answer.status_code == 200, answer.text

            await asyncio.gather(*(ask("colours") for _ in range(8)))
            assert len(loads) == 1
            for task in ("shapes", "pair", "colours", "shapes"):
                await ask(task)
        experts = service.models.shelf.experts
        assert experts.used_bytes <= experts.budget_bytes
        assert 1 <= len(experts.keys()) < 3
        assert len(loads) > 3

    asyncio.run(story())


def test_one_bad_image_fails_its_request_alone(components: Store) -> None:
    async def story() -> None:
        service = PlainService(components)
        async with service as client:
            good, bad = form_of(pictures("red")), form_of([b"\x89PNG\r\n\x1a\nnope"])
            requests = [client.post("/v1/predict", files=bad if i == 3 else good, data={"task": "a"}) for i in range(8)]
            answers = await asyncio.gather(*requests)
        assert [answer.status_code for answer in answers] == [422 if i == 3 else 200 for i in range(8)]

    asyncio.run(story())


def test_a_publish_that_changes_a_warm_expert_has_it_ready_before_the_swap(local_store: Store) -> None:
    publish_tasks(local_store)
    loads: list[float] = []

    async def story() -> None:
        service = PlainService(local_store)
        service.models._metrics.expert_loaded = loads.append  # type: ignore[method-assign]
        async with service as client:

            async def ask(task: str) -> int:
                answer = await client.post("/v1/predict", files=form_of(pictures("red")), data={"task": task})
                assert answer.status_code == 200, answer.text
                version: int = answer.json()["version"]
                return version

            assert await ask("colours") == 1
            publish_tasks(local_store, {"colours": ("red", "green")}, seed=5)
            view = await asyncio.to_thread(service.watcher._next)
            assert view is not None
            changed = {name: task.expert for name, task in view.tasks.items()}
            assert await service.models.stage(view, changed) == 1  # "shapes" and "pair" were not in memory
            assert len(loads) == 2
            await service.watcher.poll()
            assert await ask("colours") == 2
            assert len(loads) == 2

    asyncio.run(story())
