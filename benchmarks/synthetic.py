"""Experts with a known spectrum: what is measured on them depends on how fast singular values fall, not on training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from fusion.tensors import TensorFile, TensorSpec, TensorWriter

CHANGE = 1e-3
"""Root mean square of a change. Any number would do: steps follow from it."""
_RANK = 256
"""Of the signal, at most: what lies beyond is noise."""
_MOVED_ROWS = 50


def random_base(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """Write a base of random weights."""
    random = np.random.default_rng(0)
    specs = {name: TensorSpec("F32", shape) for name, shape in shapes.items()}
    writer = TensorWriter(path, specs)
    for name, spec in specs.items():
        writer.write(name, random.standard_normal(spec.elements, dtype=np.float32))
    writer.finish()


def spectral_expert(path: Path, base: TensorFile, *, power: float, noise: float, seed: int = 0) -> None:
    """Write an expert: in every matrix, singular values of the change fall as i^-power, and noise of a given share of
    its energy lies on all directions. Vectors and depthwise kernels change by noise, a token table in a few rows.
    Floats are float32, as those of experts are."""
    random = np.random.default_rng(seed)
    fused = set(base.fused_names())
    specs = {name: replace(spec, dtype="F32") if name in fused else spec for name, spec in base.specs.items()}
    writer = TensorWriter(path, specs)
    for name, spec in base.specs.items():
        values = base.array(name)
        if name in fused:
            change = _change(random, name, spec, power, noise)
            values = base.float32(name).reshape(-1) + change.reshape(-1)
        writer.write(name, values)
    writer.finish()


def _change(random: np.random.Generator, name: str, spec: TensorSpec, power: float, noise: float) -> np.ndarray:
    rows, columns = spec.num_rows, spec.elements // spec.num_rows
    if "token_embedding" in name:
        found = np.zeros((rows, columns), np.float32)
        moved = random.choice(rows, _MOVED_ROWS, replace=False)
        found[moved] = CHANGE * random.standard_normal((_MOVED_ROWS, columns), dtype=np.float32)
        return found
    everywhere = random.standard_normal((rows, columns), dtype=np.float32)
    if len(spec.shape) < 2 or min(rows, columns) < 2:
        return np.float32(CHANGE) * everywhere
    rank = min(rows, columns, _RANK)
    values = np.arange(1, rank + 1, dtype=np.float32) ** np.float32(-power)
    left = random.standard_normal((rows, rank), dtype=np.float32) * values
    signal = left @ random.standard_normal((rank, columns), dtype=np.float32)
    signal *= np.float32(np.sqrt(1 - noise)) / np.sqrt(np.square(signal).mean())
    return np.float32(CHANGE) * (signal + np.float32(np.sqrt(noise)) * everywhere)
