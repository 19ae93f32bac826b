"""The predictor: answers from a version, the same however its experts are rebuilt."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fusion.answers.clip import LOGIT_SCALE, Clip
from fusion.answers.label_spaces import Query
from fusion.answers.predictor import Predictor
from fusion.decouple import decoupled_tensors
from fusion.errors import BaseMismatchError, UnknownVersionError
from fusion.fuse import fuse_experts
from fusion.store import Store
from fusion.store.node_cache import NodeCache
from tests.fusion.published import SIGNED, TASKS, TEMPLATES, make_expert, publish_tasks
from tests.fusion.vectors import random_base, random_expert
from tests.tiny import picture, tiny_base


@pytest.fixture
def images() -> list[Image.Image]:
    random = np.random.default_rng(0)
    return [picture(name, random) for name in ("red", "circle", "blue", "square", "green")]


def by_hand(clip: Clip, pixels: torch.Tensor, classes: tuple[str, ...], templates: tuple[str, ...]) -> torch.Tensor:
    return LOGIT_SCALE * clip.image_features(pixels) @ clip.class_features(classes, templates).T


@pytest.mark.parametrize("mode", [SIGNED, {"name": "iterative"}, {"name": "joint"}, {"name": "lowrank"}], ids=str)
def test_each_label_space_is_its_rule_written_out(
    mode: dict[str, object], local_store: Store, tmp_path: Path, images: list[Image.Image]
) -> None:
    manifest = publish_tasks(local_store, tmp_path, mode=mode)
    cache = NodeCache(local_store, tmp_path / "cache")
    predictor = Predictor(cache)
    base = predictor.shelf.base.clip
    pixels = base.pixels(images)
    experts = {task: base.copy_with(decoupled_tensors(cache, manifest, task)) for task in TASKS}
    with torch.inference_mode():
        named = predictor.predict(images, Query("task", task="shapes"))
        logits = by_hand(experts["shapes"], pixels, TASKS["shapes"], TEMPLATES)
        assert [p.label for p in named] == [TASKS["shapes"][i] for i in logits.argmax(1)]

        labels = ("red", "circle", "huge")
        free = predictor.predict(images, Query("labels", labels=labels, templates=("{}.",), top_k=3))
        mean = torch.stack([by_hand(m, pixels, labels, ("{}.",)) for m in (base, *experts.values())]).mean(0)
        assert [p.label for p in free] == [labels[i] for i in mean.argmax(1)]
        np.testing.assert_allclose([p.probability for p in free], mean.softmax(1).amax(1), rtol=1e-4)

        seen = predictor.predict(images, Query("seen", top_k=3))
        both = {
            task: (
                by_hand(base, pixels, TASKS[task], TEMPLATES) + by_hand(experts[task], pixels, TASKS[task], TEMPLATES)
            )
            / 2
            for task in TASKS
        }
        for i, prediction in enumerate(seen):
            best = max(
                (float(values[i].max()), task, TASKS[task][int(values[i].argmax())]) for task, values in both.items()
            )
            assert (prediction.task, prediction.label) == best[1:]
            assert set(prediction.experts) == set(TASKS)


def test_an_older_version_answers_as_it_did(local_store: Store, tmp_path: Path, images: list[Image.Image]) -> None:
    publish_tasks(local_store, tmp_path, ["colours"])
    cache = NodeCache(local_store, tmp_path / "cache")
    before = Predictor(cache).predict(images, Query("seen"))
    publish_tasks(local_store, tmp_path, ["shapes"], seed=40)
    now = Predictor(cache)
    assert now.view().version == 2
    assert now.predict(images, Query("seen"), view=now.view(1)) == before
    with pytest.raises(UnknownVersionError, match="has no version 7"):
        now.view(7)


def test_a_publish_that_does_not_touch_a_task_leaves_its_expert_warm(
    local_store: Store, tmp_path: Path, images: list[Image.Image]
) -> None:
    publish_tasks(local_store, tmp_path, ["colours", "shapes"])
    cache = NodeCache(local_store, tmp_path / "cache")
    predictor = Predictor(cache)
    predictor.predict(images, Query("task", task="colours"))
    warm = predictor.shelf.experts.keys()
    base = tiny_base(local_store)
    expert = make_expert(local_store, cache, base, "sizes", tmp_path, seed=77)
    fuse_experts(cache, base, [expert], mode=SIGNED)
    predictor.predict(images, Query("task", task="colours"), view=predictor.view(3))
    assert predictor.shelf.experts.keys() == warm


def test_more_experts_than_cache_slots_is_slower_and_never_wrong(
    local_store: Store, tmp_path: Path, images: list[Image.Image]
) -> None:
    publish_tasks(local_store, tmp_path)
    cache = NodeCache(local_store, tmp_path / "cache")
    small, large = Predictor(cache, expert_memory=1), Predictor(cache)
    for query in (Query("seen"), Query("labels", labels=("red", "blue"))):
        assert small.predict(images, query) == large.predict(images, query)
    assert len(small.shelf.experts.keys()) == 1


def test_no_images_no_answers_and_nothing_published_is_said(local_store: Store, tmp_path: Path) -> None:
    with pytest.raises(UnknownVersionError, match="nothing was published"):
        Predictor(NodeCache(local_store, tmp_path / "cache"))
    publish_tasks(local_store, tmp_path, ["colours"])
    assert Predictor(NodeCache(local_store, tmp_path / "cache")).predict([], Query("seen")) == []


def test_a_store_of_plain_weights_can_not_be_asked(local_store: Store, tmp_path: Path) -> None:
    base, path = random_base(tmp_path, local_store)
    cache = NodeCache(local_store, tmp_path / "cache")
    fuse_experts(cache, base, [random_expert(tmp_path, path, "a", seed=1)], mode=SIGNED)
    with pytest.raises(BaseMismatchError, match="without an architecture"):
        Predictor(cache)


def test_the_model_is_in_eval_mode_and_a_copy_leaves_the_base_alone(local_store: Store, tmp_path: Path) -> None:
    manifest = publish_tasks(local_store, tmp_path, ["colours"])
    cache = NodeCache(local_store, tmp_path / "cache")
    base = Predictor(cache).shelf.base.clip
    before = {name: tensor.clone() for name, tensor in base.model.state_dict().items()}
    expert = base.copy_with(decoupled_tensors(cache, manifest, "colours"))
    assert not any(module.training for clip in (base, expert) for module in clip.model.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in base.model.state_dict().items())
    assert any(not torch.equal(before[name], tensor) for name, tensor in expert.model.state_dict().items())
