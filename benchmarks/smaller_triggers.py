"""What would make `lowrank` triggers smaller, measured on the experts of a finished run: what was not built, and why.

  as stored     Huffman codes per class of runs, by zlib
  entropy       the least that any coder of single symbols, such as rANS, takes for the same classes, tables not counted
  importance    matrices weighted by how large the inputs of their columns are on the task's training images, before
                they are cut into components. The weights are taken out again in floating point, which a trigger could
                not do exactly: the figure is the most that weighting could bring.

Bytes are of the image encoder's matrices, where the weights apply; KL and agreement are of the whole expert on its test
images, as `trigger_fidelity` has them. So equal KL at fewer bytes is what a row has to show. The last line is JSON.

    python -m benchmarks.smaller_triggers demo-output/condu.yaml     # five minutes on 2 cores
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.finished_run import open_finished_run
from fusion.answers.clip import Clip
from fusion.answers.predictor import ExpertModel
from fusion.factors.algebra import open_algebra
from fusion.factors.components import Components, encode
from fusion.factors.symbols import SymbolWriter
from fusion.tensors import TensorFile
from training.data import TaskData
from training.evaluate import load_pixels
from training.kept import Kept, kept

_QUALITIES = (0.7, 1.0, 1.4, 2.0)
_IMAGES = 64
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
        wanted = _logits(run.clip, data, pixels, {name: expert.tensor(name) for name in expert.specs})
        weights = _input_sizes(run.clip.copy_with((n, expert.tensor(n)) for n in expert.specs), data)
        for quality in _QUALITIES:
            for way, scales in (("plain", {}), ("importance", weights)):
                tensors, stored, bound = _coded(run.base, expert, weights.keys(), scales, quality)
                found = kept(wanted, _logits(run.clip, data, pixels, tensors))
                rows.setdefault((way, quality), []).append((stored, bound, found))
        print(f"{task} done", flush=True)
    figures = [{"way": way, "quality": quality, **_mean(found)} for (way, quality), found in rows.items()]
    print(f"{'':12s} {'quality':>8} {'KB stored':>10} {'KB entropy':>11} {'agree %':>8} {'KL':>8}")
    for one in figures:
        print(
            f"{one['way']:12s} {one['quality']:8.1f} {one['stored'] / 1000:10.0f} {one['entropy'] / 1000:11.0f} "
            f"{one['agreement']:8.2f} {one['divergence']:8.4f}"
        )
    print(json.dumps({"rows": figures}))


def _mean(found: list[tuple[float, float, Kept]]) -> dict[str, float]:
    stored, bound, answers = zip(*found, strict=True)
    return {
        "stored": float(np.mean(stored)),
        "entropy": float(np.mean(bound)),
        "agreement": 100 * float(np.mean([one.agreement for one in answers])),
        "divergence": float(np.mean([one.divergence for one in answers])),
    }


def _coded(
    base: TensorFile, expert: TensorFile, names: Any, scales: Mapping[str, np.ndarray], quality: float
) -> tuple[dict[str, torch.Tensor], float, float]:
    """An expert whose matrices `names` were cut into components, and their bytes: stored, and by entropy."""
    tensors = {name: expert.tensor(name) for name in expert.specs}
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
            decoded = found.rows(0, len(delta), np.dtype(np.float64), algebra) / scale
            for side in _sides(found):
                runs.add(writer.add(side), side)
        theta = base.float32(name).reshape(decoded.shape)
        tensors[name] = torch.from_numpy((theta + decoded).astype(np.float32)).reshape(base.specs[name].shape)
    return tensors, float(sum(stream.size for stream in writer.streams().values())), runs.entropy_bytes()


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


def _sides(found: Components) -> Iterator[np.ndarray]:
    yield from found.left
    yield from found.right


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


def _logits(clip: Clip, data: TaskData, pixels: torch.Tensor, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    model = ExpertModel(clip.copy_with(tensors.items()))
    return model.feature_logits(model.clip.image_features(pixels), tuple(data.classes), tuple(data.templates))


if __name__ == "__main__":
    main()
