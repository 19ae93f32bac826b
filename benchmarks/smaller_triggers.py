"""What would make `lowrank` triggers smaller, measured on the experts of a finished run: what was not built, and why.

  as stored     Huffman codes per class of runs, by zlib
  entropy       the least that any coder of single symbols, such as rANS, takes for the same classes, tables not counted
  importance    matrices weighted by how large the inputs of their columns are on the task's training images, before
                they are cut into components. The weights are taken out again in floating point, which a trigger could
                not do exactly: the figure is the most that weighting could bring.
  tuned         the components' scales moved for a few steps against the expert's own answers on the training images, a
                fifth of them left out: the scales of the step that was best there. They stay in floating point here, so
                again the most that it could bring. Bytes do not change.

Bytes are of the image encoder's matrices, where the weights apply; KL and agreement are of the whole expert on its test
images, as `trigger_fidelity` has them. So equal KL at fewer bytes is what a row has to show. The last line is JSON.

    python -m benchmarks.smaller_triggers demo-output/condu.yaml     # six minutes on 2 cores
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import kl_div
from torch.nn.utils import parametrize

from benchmarks.finished_run import open_finished_run
from fusion.answers.clip import LOGIT_SCALE, Clip
from fusion.factors.algebra import open_algebra
from fusion.factors.components import Components, encode
from fusion.factors.symbols import SymbolWriter
from fusion.tensors import TensorFile
from training.data.task_data import TaskData
from training.evaluate import load_pixels, logits_with
from training.kept import Kept, kept

_QUALITIES = (0.7, 1.0, 1.4)
_IMAGES = 64
_TUNING_IMAGES, _TUNING_STEPS, _TUNING_BATCH, _TUNING_LR = 200, 40, 20, 0.01
_FLOOR = 1e-2
"""Of the mean input: no column counts for less, however small its inputs on these images."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    run = open_finished_run(parser.parse_args().config)
    rows: dict[tuple[str, float], list[tuple[float, float, Kept]]] = {}
    for task, expert in run.experts.items():
        data = run.data[task]
        pixels = load_pixels(run.clip, data)
        own = {name: expert.tensor(name) for name in expert.specs}
        wanted = logits_with(run.clip, own.items(), pixels, data)
        weights = _input_sizes(run.clip.copy_with(own.items()), data)
        for quality in _QUALITIES:
            for way, scales in (("plain", {}), ("importance", weights)):
                coded = _Coded(run.base, expert, list(weights), scales, quality)
                found = kept(wanted, logits_with(run.clip, coded.tensors.items(), pixels, data))
                rows.setdefault((way, quality), []).append((coded.stored, coded.entropy, found))
                if way == "plain":
                    tuned = _tuned(run.clip, data, expert, coded)
                    found = kept(wanted, logits_with(run.clip, tuned.items(), pixels, data))
                    rows.setdefault(("tuned", quality), []).append((coded.stored, coded.entropy, found))
        print(f"{task} done", flush=True)
    figures: list[dict[str, Any]] = [
        {"way": way, "quality": quality, **_mean(found)} for (way, quality), found in rows.items()
    ]
    print(f"{'':12s} {'quality':>8} {'KB stored':>10} {'KB entropy':>11} {'agree %':>8} {'KL':>8}")
    for one in figures:
        print(
            f"{one['way']:12s} {one['quality']:8.1f} {one['stored'] / 1000:10.0f} {one['entropy'] / 1000:11.0f} "
            f"{one['agreement']:8.2f} {one['divergence']:8.4f}"
        )
    print(json.dumps({"rows": figures}))


def _mean(found: list[tuple[float, float, Kept]]) -> dict[str, float]:
    return {
        "stored": float(np.mean([stored for stored, _, _ in found])),
        "entropy": float(np.mean([entropy for _, entropy, _ in found])),
        "agreement": 100 * float(np.mean([answers.agreement for *_, answers in found])),
        "divergence": float(np.mean([answers.divergence for *_, answers in found])),
    }


class _Coded:
    """An expert whose matrices `names` were cut into components.

    Attributes:
        tensors: its full state dict.
        components: of each matrix, with the scales that its columns had.
        stored, entropy: bytes of the matrices, as stored, and by entropy.
    """

    def __init__(
        self, base: TensorFile, expert: TensorFile, names: list[str], scales: Mapping[str, np.ndarray], quality: float
    ) -> None:
        self.tensors = {name: expert.tensor(name) for name in expert.specs}
        self.components: dict[str, Components] = {}
        deltas = {n: (expert.float32(n) - base.float32(n)).reshape(base.specs[n].num_rows, -1) for n in names}
        deltas = {name: delta for name, delta in deltas.items() if delta.any()}
        squares = sum(float(np.square(delta, dtype=np.float64).sum()) for delta in deltas.values())
        step = quality * np.sqrt(squares / sum(delta.size for delta in deltas.values()))
        writer, runs, algebra = SymbolWriter(), _Runs(), open_algebra("cpu")
        for name, delta in deltas.items():
            scale = scales.get(name, np.ones(delta.shape[1], np.float32))
            found = encode(delta * scale, step, algebra)
            decoded = np.zeros_like(delta)
            if found is not None:
                self.components[name] = found
                decoded = found.rows(0, len(delta), np.dtype(np.float64), algebra) / scale
                for side in (*found.left, *found.right):
                    runs.add(writer.add(side), side)
            theta = base.float32(name).reshape(decoded.shape)
            weights = torch.from_numpy((theta + decoded).astype(np.float32))
            self.tensors[name] = weights.reshape(base.specs[name].shape)
        self.stored = float(sum(stream.size for stream in writer.streams().values()))
        self.entropy = runs.entropy_bytes()


class _Runs:
    """The symbols of each class."""

    def __init__(self) -> None:
        self._values: dict[int, list[np.ndarray]] = {}

    def add(self, kind: int, values: np.ndarray) -> None:
        self._values.setdefault(kind, []).append(values)

    def entropy_bytes(self) -> float:
        bits = 0.0
        for runs in self._values.values():
            _, counts = np.unique(np.concatenate(runs), return_counts=True)
            bits -= float((counts * np.log2(counts / counts.sum())).sum())
        return bits / 8


class _Scaled(nn.Module):
    """A weight whose components have a factor each, 1 at first: W + sum_k (factor_k - 1) gamma_k u_k v_k."""

    def __init__(self, found: Components) -> None:
        super().__init__()
        gammas = np.ldexp(found.mantissas.astype(np.float32), found.exponents)
        self.register_buffer("left", torch.from_numpy(found.left.T.astype(np.float32) * gammas), persistent=False)
        self.register_buffer("right", torch.from_numpy(found.right.astype(np.float32)), persistent=False)
        self.offsets = nn.Parameter(torch.zeros(len(found.left)))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        change = (self.get_buffer("left") * self.offsets) @ self.get_buffer("right")
        return weight + change.reshape(weight.shape)


def _tuned(base: Clip, data: TaskData, expert: TensorFile, coded: _Coded) -> dict[str, torch.Tensor]:
    """The coded expert with the scales that gave the expert's answers best on left-out training images."""
    random = np.random.default_rng(0)
    chosen = random.permutation(len(data.train))[:_TUNING_IMAGES]
    pixels = base.pixels([data.train.image(int(i)) for i in chosen])
    wanted = logits_with(base, ((name, expert.tensor(name)) for name in expert.specs), pixels, data)
    clip = base.copy_with(coded.tensors.items())
    texts = clip.class_features(tuple(data.classes), tuple(data.templates))
    for parameter in clip.model.parameters():
        parameter.requires_grad_(False)
    scaled: list[tuple[nn.Module, str, _Scaled]] = []
    for name, found in coded.components.items():
        module, _, tensor = name.rpartition(".")
        scaled.append((clip.model.get_submodule(module), tensor, _Scaled(found)))
        parametrize.register_parametrization(*scaled[-1])
    optimizer = torch.optim.Adam([change.offsets for *_, change in scaled], lr=_TUNING_LR)
    shown, left_out = pixels[len(pixels) // 5 :], pixels[: len(pixels) // 5]
    best = None
    for step in range(_TUNING_STEPS + 1):
        if step % 10 == 0:
            with torch.no_grad():
                logits = LOGIT_SCALE * clip.image_features(left_out) @ texts.T
            found_now = kept(wanted[: len(left_out)], logits).divergence
            if best is None or found_now < best[0]:
                best = found_now, [change.offsets.detach().clone() for *_, change in scaled]
        rows = torch.from_numpy(random.integers(0, len(shown), _TUNING_BATCH))
        with torch.enable_grad():
            features = clip.model.encode_image(shown[rows], normalize=True)  # type: ignore[operator]
            logs = (LOGIT_SCALE * features @ texts.T).log_softmax(1), wanted[len(left_out) :][rows].log_softmax(1)
            loss = kl_div(*logs, log_target=True, reduction="batchmean")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert best is not None
    for (module_of, tensor, change), offsets in zip(scaled, best[1], strict=True):
        change.offsets.data.copy_(offsets)
        parametrize.remove_parametrizations(module_of, tensor, leave_parametrized=True)
    return dict(clip.model.state_dict())


def _input_sizes(expert: Clip, data: TaskData) -> dict[str, np.ndarray]:
    """Root mean square input of each column of the image encoder's matrices, relative to the matrix's mean: [C]."""
    sums: dict[str, torch.Tensor] = {}
    visual = expert.model.get_submodule("visual")

    def note(name: str, columns: int) -> Any:
        def hook(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            values = inputs[0].square()
            channels = 1 if isinstance(module, nn.Conv2d) else values.dim() - 1
            each = values.mean([axis for axis in range(values.dim()) if axis != channels])
            sums[name] = sums.get(name, torch.zeros(columns)) + each.repeat_interleave(columns // each.numel())

        return hook

    hooks = []
    for name, module in visual.named_modules():
        if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1):
            columns = module.weight[0].numel()
            hooks.append(module.register_forward_pre_hook(note(f"visual.{name}.weight", columns)))
    random = np.random.default_rng(0)
    chosen = random.choice(len(data.train), min(_IMAGES, len(data.train)), replace=False)
    expert.image_features(expert.pixels([data.train.image(int(i)) for i in chosen]))
    for hook in hooks:
        hook.remove()
    roots = {name: total.sqrt().numpy() for name, total in sums.items()}
    roots = {name: np.maximum(root, _FLOOR * root.mean()) for name, root in roots.items()}
    return {name: (root / np.sqrt(np.square(root).mean())).astype(np.float32) for name, root in roots.items()}


if __name__ == "__main__":
    main()
