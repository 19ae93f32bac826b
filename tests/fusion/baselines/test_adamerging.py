"""Layer-wise AdaMerging on a tiny CLIP: what it learns without labels, and that it follows the right gradient."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.func import functional_call

from fusion.answers.clip import LOGIT_SCALE, Clip, build_clip
from fusion.baselines import fuse_baseline
from fusion.baselines.adamerging import AdaMerging, Unlabelled
from fusion.errors import ConfigError
from fusion.store import open_store
from fusion.tensors import TensorFile, write_tensors
from tests.tiny import COLOURS, SHAPES, picture, tiny_base

PROMPTS = {"colours": tuple(f"a {name} picture." for name in COLOURS), "shapes": tuple(f"{name}." for name in SHAPES)}


@pytest.fixture(scope="module")
def clip_and_base(tmp_path_factory: pytest.TempPathFactory) -> tuple[Clip, TensorFile]:
    store = open_store(tmp_path_factory.mktemp("store").as_uri())
    base = tiny_base(store)
    path = store.local_path(base.weights.key)
    assert path is not None
    weights = TensorFile(path)
    return build_clip(base, weights), weights


@pytest.fixture(scope="module")
def experts(clip_and_base: tuple[Clip, TensorFile], tmp_path_factory: pytest.TempPathFactory) -> dict[str, TensorFile]:
    """Two experts in which every tensor changed at random, by a tenth of its own size."""
    _, base = clip_and_base
    found = {}
    for seed, task in enumerate(PROMPTS):
        generator = torch.Generator().manual_seed(seed)
        tensors = {}
        for name in base.specs:
            tensor = base.tensor(name).clone()
            tensors[name] = tensor + 0.1 * tensor.abs().mean() * torch.randn(tensor.shape, generator=generator)
        path = tmp_path_factory.mktemp(task) / "expert.safetensors"
        write_tensors(path, tensors)
        found[task] = TensorFile(path)
    return found


@pytest.fixture(scope="module")
def images(clip_and_base: tuple[Clip, TensorFile]) -> dict[str, Unlabelled]:
    clip, _ = clip_and_base
    random = np.random.default_rng(0)
    names = {"colours": tuple(COLOURS), "shapes": SHAPES}
    return {
        task: Unlabelled(clip.pixels([picture(name, random) for name in names[task] * 4]), PROMPTS[task])
        for task in PROMPTS
    }


def test_entropy_falls_and_every_tensor_of_every_task_has_its_own_coefficient(
    clip_and_base: tuple[Clip, TensorFile],
    experts: dict[str, TensorFile],
    images: dict[str, Unlabelled],
    tmp_path: Path,
) -> None:
    clip, base = clip_and_base
    before = {name: tensor.clone() for name, tensor in clip.model.state_dict().items()}
    method = AdaMerging(clip, images, num_steps=12, batch_size=16, lr=0.05)
    fused = fuse_baseline(method, base, experts, tmp_path / "shelf")
    assert method.entropies[-1] < 0.9 * method.entropies[0]
    assert set(method.coefficients) == set(base.fused_names())
    learned = np.stack([values for name, values in method.coefficients.items() if name != "logit_scale"])
    assert learned.shape[1] == len(experts)
    assert len(np.unique(learned.round(4))) > len(learned), "coefficients of tensors differ"
    for name, tensor in fused.tensors("shapes"):
        if name in method.coefficients:
            moved = [expert.tensor(name) - base.tensor(name) for expert in experts.values()]
            want = base.tensor(name) + sum(c * d for c, d in zip(method.coefficients[name], moved, strict=True))
            torch.testing.assert_close(tensor, want, atol=1e-6, rtol=1e-5)
    assert all(torch.equal(tensor, before[name]) for name, tensor in clip.model.state_dict().items())


def test_a_step_follows_the_gradient_of_the_summed_entropies(
    clip_and_base: tuple[Clip, TensorFile],
    experts: dict[str, TensorFile],
    images: dict[str, Unlabelled],
    tmp_path: Path,
) -> None:
    """Against torch's own gradient through the whole merge. Adam's first step has the gradient's sign and size lr."""
    clip, base = clip_and_base
    method = AdaMerging(clip, images, num_steps=1, batch_size=16, lr=0.01, start=0.3)
    fuse_baseline(method, base, experts, tmp_path / "shelf")
    names = base.fused_names()
    coefficients = torch.full((len(names), len(experts)), 0.3, requires_grad=True)
    merged = {
        name: base.tensor(name)
        + sum(coefficients[n, k] * (e.tensor(name) - base.tensor(name)) for k, e in enumerate(experts.values()))
        for n, name in enumerate(names)
    }
    total = torch.zeros(())
    for task, given in images.items():
        order = torch.arange(16) % len(given.pixels)
        outputs = functional_call(clip.model, merged, (given.pixels[order], clip.tokenizer(list(PROMPTS[task]))))
        shares = (LOGIT_SCALE * outputs[0] @ outputs[1].T).softmax(-1)
        total = total - (shares * shares.log()).sum(-1).mean()
    total.backward()
    assert method.entropies == [pytest.approx(float(total.detach()) / 2, rel=1e-4)]
    assert coefficients.grad is not None
    clear = coefficients.grad.abs() > 1e-3
    assert clear.float().mean() > 0.5
    moved = torch.stack([torch.from_numpy(method.coefficients[name]) for name in names]) - 0.3
    torch.testing.assert_close(moved[clear], -0.01 * coefficients.grad[clear].sign(), atol=1e-4, rtol=0)


def test_a_task_without_images_is_named(
    clip_and_base: tuple[Clip, TensorFile],
    experts: dict[str, TensorFile],
    images: dict[str, Unlabelled],
    tmp_path: Path,
) -> None:
    clip, base = clip_and_base
    with pytest.raises(ConfigError, match="no unlabelled images of shapes"):
        fuse_baseline(AdaMerging(clip, {"colours": images["colours"]}), base, experts, tmp_path / "shelf")
