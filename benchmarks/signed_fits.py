"""Claim: at one bit `signed` gains nothing from fitted row scales, and little from scales tuned on the expert's logits.

Encodes the experts of a run with one bit against one shared profile and compares three ways to choose the scale of a
row: its mean magnitude (what condu stores), least squares, and the mean tuned by a few steps of Adam so that the
decoupled expert's logits match the original expert's on its own training images. The format is the same for all
three.

    make demo && python -m benchmarks.signed_fits demo-output/condu.yaml
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.func import functional_call

from benchmarks.finished_run import open_finished_run
from fusion.answers.clip import LOGIT_SCALE, Clip
from fusion.answers.predictor import ExpertModel
from fusion.answers.prompts import prompts
from fusion.fuse import ExpertToFuse, fuse_experts
from fusion.store import open_store
from fusion.store.node_cache import NodeCache
from fusion.tensors import TensorFile
from fusion.versions.bases import put_base
from training.data.task_data import TaskData
from training.evaluate import load_pixels, right_of

_NUM_IMAGES, _NUM_STEPS, _BATCH, _RATE = 128, 30, 32, 0.02


@dataclass(frozen=True)
class Case:
    """One task: its data, its expert, and the expert's one-bit encoding. Tensors by name, in the base's shapes."""

    data: TaskData
    expert: dict[str, torch.Tensor]
    signed_profile: dict[str, torch.Tensor]
    """The profile g with the sign of the task vector."""
    delta: dict[str, torch.Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--tasks", nargs="+", help="default: all")
    options = parser.parse_args()
    run = open_finished_run(options.config)
    base, clip, files = run.base, run.clip, run.experts
    profile = _profile(base.path, files)
    rows = []
    print(f"{'task':<12} {'expert':>7} {'mean':>7} {'squares':>8} {'tuned':>7}   cosine: mean, squares, tuned")
    for name in options.tasks or files:
        case = _case(run.data[name], base, files[name], profile)
        fits: list[Callable[[], dict[str, torch.Tensor]]] = [
            lambda case=case: _mean(case),
            lambda case=case: _least_squares(case),
            lambda case=case: _tuned(case, clip, base),
        ]
        scales = [fit() for fit in fits]
        accuracies = [_accuracy(clip, case, case.delta)]
        cosines = []
        for fitted in scales:
            found = {key: fitted[key] * case.signed_profile[key] for key in fitted}
            accuracies.append(_accuracy(clip, case, found))
            cosines.append(_cosine(found, case.delta))
        rows.append((accuracies, cosines))
        print(
            f"{name:<12} " + " ".join(f"{value:>7.1f}" for value in accuracies)
            + "   " + ", ".join(f"{value:.4f}" for value in cosines), flush=True,
        )  # fmt: skip
    accuracies, cosines = (np.mean([row[i] for row in rows], axis=0).tolist() for i in range(2))
    print(f"{'mean':<12} " + " ".join(f"{value:>7.1f}" for value in accuracies))
    print(json.dumps({"accuracy": accuracies, "cosine": cosines, "columns": ["expert", "mean", "squares", "tuned"]}))


def _profile(base_path: Path, files: dict[str, TensorFile]) -> dict[str, np.ndarray]:
    """The newest profile of a scratch store in which the experts are fused with one bit."""
    with tempfile.TemporaryDirectory() as folder:
        scratch = open_store(folder)
        base = put_base(scratch, base_path)
        experts = [ExpertToFuse(name, file.path) for name, file in files.items()]
        own = NodeCache(scratch)
        state = fuse_experts(own, base, experts, mode={"name": "signed", "bits": 1}).manifest.state
        file = own.tensors(state.shared[state.reads[0]])
        return {name: file.float32(name) for name in file.specs}


def _case(data: TaskData, base: TensorFile, file: TensorFile, profile: dict[str, np.ndarray]) -> Case:
    delta = {name: torch.from_numpy(np.asarray(file.float32(name) - base.float32(name))) for name in base.fused_names()}
    signs = {name: torch.where(value > 0, 1.0, -1.0) for name, value in delta.items()}
    shared = {name: signs[name] * torch.from_numpy(np.asarray(profile[name])) for name in delta}
    return Case(data, {name: file.tensor(name) for name in file.specs}, shared, delta)


def _per_row(values: torch.Tensor) -> torch.Tensor:
    """Sum over each row, in a shape that broadcasts; vectors and scalars are one row."""
    return values.sum(dim=tuple(range(1, values.dim())), keepdim=True) if values.dim() > 1 else values.sum()


def _mean(case: Case) -> dict[str, torch.Tensor]:
    return {n: _per_row(d.abs()) / _per_row(torch.ones_like(d)).clamp(min=1) for n, d in case.delta.items()}


def _least_squares(case: Case) -> dict[str, torch.Tensor]:
    return {
        n: _per_row(d * case.signed_profile[n]) / _per_row(case.signed_profile[n] ** 2) for n, d in case.delta.items()
    }


def _tuned(case: Case, clip: Clip, base: TensorFile) -> dict[str, torch.Tensor]:
    """Mean magnitudes times exp(a), where a is learned so that logits match the expert's on training images."""
    start = _mean(case)
    logs = {name: torch.zeros_like(value, requires_grad=True) for name, value in start.items()}
    indices = torch.randperm(len(case.data.train), generator=torch.Generator().manual_seed(0))[:_NUM_IMAGES].tolist()
    pixels = clip.pixels([case.data.train.image(index) for index in indices])
    tokens = clip.tokenizer(prompts(case.data.classes, case.data.templates[:1]))
    teacher = clip.copy_with(case.expert.items())
    with torch.no_grad():
        wanted = _logits(teacher.model, {}, pixels, tokens)
    theta = {name: base.tensor(name).float() for name in start}
    optimizer = torch.optim.Adam(logs.values(), lr=_RATE)
    for step in range(_NUM_STEPS):
        batch = torch.arange(step * _BATCH, (step + 1) * _BATCH) % len(pixels)
        weights = {n: theta[n] + start[n] * logs[n].exp() * case.signed_profile[n] for n in start}
        loss = (_logits(clip.model, weights, pixels[batch], tokens) - wanted[batch]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return {name: (start[name] * logs[name].exp()).detach() for name in start}


def _logits(
    model: torch.nn.Module, weights: dict[str, torch.Tensor], pixels: torch.Tensor, prompts: torch.Tensor
) -> torch.Tensor:
    images, texts = functional_call(_Towers(model), {f"model.{n}": w for n, w in weights.items()}, (pixels, prompts))
    return LOGIT_SCALE * images @ texts.T


class _Towers(torch.nn.Module):
    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: torch.Tensor, prompts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        images: torch.Tensor = self.model.encode_image(pixels, normalize=True)  # type: ignore[operator]
        texts: torch.Tensor = self.model.encode_text(prompts, normalize=True)  # type: ignore[operator]
        return images, texts


def _accuracy(clip: Clip, case: Case, delta: dict[str, torch.Tensor]) -> float:
    own = clip.model.state_dict()
    model = ExpertModel(clip.copy_with((name, own[name] + delta[name]) for name in delta))
    features = model.clip.image_features(load_pixels(clip, case.data))
    return 100 * float(right_of(model, features, case.data).mean())


def _cosine(found: dict[str, torch.Tensor], exact: dict[str, torch.Tensor]) -> float:
    def inner(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
        return sum(float((first[name].double() * second[name].double()).sum()) for name in first)

    return inner(found, exact) / np.sqrt(inner(found, found) * inner(exact, exact))


if __name__ == "__main__":
    main()
