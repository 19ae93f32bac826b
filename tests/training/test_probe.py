"""The probe: texts go to where the discriminant of frozen image features has the classes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.functional import normalize

from fusion.answers.class_sums import Discriminant, sum_classes
from fusion.answers.clip import LOGIT_SCALE, build_clip
from fusion.store import Store
from fusion.store.node_cache import NodeCache
from fusion.tensors import write_tensors
from tests.tiny import tiny_base, tiny_task
from training.data.task_data import load_task_data
from training.finetune import finetune, image_features
from training.probe import class_directions, fit_texts, prompt_tokens
from training.recipe import Recipe

RECIPE = Recipe(
    steps=12,
    batch_size=8,
    lr=1e-3,
    warmup_steps=2,
    augment="none",
    train_templates="all",
    probe_steps=30,
    probe_lr=3e-3,
    text_lr=0.0,
    average=0.5,
    held_out=0.5,
    save_every_steps=4,
)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("seed", range(3))
def test_the_directions_say_what_the_discriminant_says(seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    labels = torch.arange(120) % 4
    shape = torch.diag(torch.tensor([1.0, 1, 1, 1, 0.2, 0.2, 3, 3]))
    clouds = torch.eye(8)[labels] + 3 * torch.ones(8) + 0.25 * torch.randn(120, 8, generator=random) @ shape
    features = normalize(clouds, dim=1)
    found = class_directions(features, labels, 4)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(4))
    by_directions = (LOGIT_SCALE * features @ found.T).argmax(1)
    by_discriminant = Discriminant(sum_classes(features, labels, 4)).scores(features).argmax(1)
    assert (by_directions == by_discriminant).float().mean() > 0.95


def test_a_few_steps_bring_every_prompt_of_a_class_there(local_store: Store, tmp_path: Path) -> None:
    base = tiny_base(local_store)
    clip = build_clip(base, NodeCache(local_store).tensors(base.weights))
    data = load_task_data("colours", tiny_task(tmp_path / "colours", num_train=6))
    dice = torch.Generator().manual_seed(0)
    directions, features = (normalize(torch.randn(count, 32, generator=dice), dim=1) for count in (4, 50))
    tokens = prompt_tokens(clip.tokenizer, data.classes, data.templates)
    texts = [
        parameter for name, parameter in clip.model.named_parameters() if not name.startswith(("visual.", "logit"))
    ]
    visual = {name: p.detach().clone() for name, p in clip.model.named_parameters() if name.startswith("visual.")}
    fit_texts(clip.model, texts, tokens, directions, features, replace(RECIPE, probe_steps=120))
    assert (clip.class_features(data.classes, data.templates) * directions).sum(1).min() > 0.9
    assert all(torch.equal(clip.model.get_parameter(name), before) for name, before in visual.items())


def test_prompts_tell_apart_what_directions_do_that_share_nearly_all_their_length(
    local_store: Store, tmp_path: Path
) -> None:
    base = tiny_base(local_store)
    clip = build_clip(base, NodeCache(local_store).tensors(base.weights))
    dice = torch.Generator().manual_seed(0)
    common, own = (normalize(torch.randn(count, 32, generator=dice), dim=1) for count in (1, 26))
    classes = tuple("abcdefghijklmnopqrstuvwxyz")
    labels = torch.arange(520) % 26
    features = normalize(common + own[labels] + 0.05 * torch.randn(520, 32, generator=dice), dim=1)
    directions = normalize(common + 0.2 * own, dim=1)
    assert (directions @ directions.T).mean() > 0.95
    texts = [p for name, p in clip.model.named_parameters() if not name.startswith(("visual.", "logit"))]
    tokens = prompt_tokens(clip.tokenizer, classes, ("letter {}.",))
    fit_texts(clip.model, texts, tokens, directions, features, replace(RECIPE, probe_steps=80))
    said = features @ clip.class_features(classes, ("letter {}.",)).T
    assert (said.argmax(1) == labels).float().mean() > 0.9


@pytest.mark.parametrize("state_step", [4, 8])
def test_probe_average_and_held_out_images_survive_a_resume_bit_for_bit(
    local_store: Store, tmp_path: Path, state_step: int
) -> None:
    """A state from before the held-out images are measured (step 6), and one from after it."""
    base, cache = tiny_base(local_store), NodeCache(local_store)
    data = load_task_data("colours", tiny_task(tmp_path / "colours", num_train=10))
    whole, resumed = (build_clip(base, cache.tensors(base.weights)) for _ in range(2))

    def save(step: int, tensors: dict[str, torch.Tensor]) -> None:
        write_tensors(tmp_path / f"{step}.safetensors", tensors)

    seen = image_features(whole, data)
    first = finetune(whole, data, RECIPE, seed=1, base_features=seen, on_state=save)
    second = finetune(resumed, data, RECIPE, seed=1, base_features=seen, state=tmp_path / f"{state_step}.safetensors")
    assert first.held_out is not None
    assert first.held_out == second.held_out
    assert first.held_out.num_images == 8
    assert first.expert is not None
    assert second.expert is not None
    assert [name for name in first.expert if not torch.equal(first.expert[name], second.expert[name])] == []


def test_frozen_texts_are_what_the_probe_left(local_store: Store, tmp_path: Path) -> None:
    base, cache = tiny_base(local_store), NodeCache(local_store)
    data = load_task_data("colours", tiny_task(tmp_path / "colours", num_train=6))
    experts = []
    for steps in (3, 6):
        clip = build_clip(base, cache.tensors(base.weights))
        experts.append(finetune(clip, data, replace(RECIPE, steps=steps, held_out=0.0), seed=1).expert)
    short, long = experts
    assert short is not None
    assert long is not None
    assert {name.split(".")[0] for name in short if not torch.equal(short[name], long[name])} == {"visual"}
