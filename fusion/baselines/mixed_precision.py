"""Mixed precision, Delta-CoMe-style: singular vectors of the task vector in 8, 3 and 2 bits (arXiv 2406.08903).

Each matrix is decomposed, delta = U S V. Vectors of the two largest singular values are kept in 8 bits, those of the
next 32 in 3 bits, the following ones in 2 bits, as many as a budget of bits per element of the matrix allows. A vector
has one fp16 scale, the one of 24 clipping points with the least squared error. Delta-CoMe quantises by GPTQ, with
calibration data; nothing is calibrated here, hence "style".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from fusion.baselines.factored import Factored
from fusion.baselines.shelf import Shelf
from fusion.errors import ConfigError
from fusion.planes import pack, unpack

_GROUPS = ((8, 2), (3, 32), (2, None))
"""Bits, and how many singular values have vectors of so many; the last group takes the rest of the budget."""
_SCALE_BITS = 16
_CLIPS = np.linspace(0.2, 1.0, 24, dtype=np.float32)


@dataclass(frozen=True)
class MixedPrecision(Factored):
    """Quantised singular vectors.

    Attributes:
        bits: budget per element of a matrix, above 0.
    """

    name: ClassVar[str] = "delta-come"
    bits: float = 1.0

    def __post_init__(self) -> None:
        if not self.bits > 0:
            raise ConfigError(f"delta-come: bits is {self.bits}, it must be above 0")

    @property
    def title(self) -> str:
        return f"Delta-CoMe-style, {self.bits:g} bits"

    def put_matrix(self, shelf: Shelf, name: str, task: str, matrix: np.ndarray) -> bool:
        counts = _counts(matrix.shape, self.bits)
        if not any(counts) or self.bits >= _SCALE_BITS:
            return False
        left, values, right = (part.numpy() for part in torch.linalg.svd(torch.from_numpy(matrix), full_matrices=False))
        root, first = np.sqrt(values), 0
        for (bits, _), count in zip(_GROUPS, counts, strict=True):
            if not count:
                continue
            own = slice(first, first + count)
            first += count
            for side, vectors in (("left", left.T[own] * root[own, None]), ("right", right[own] * root[own, None])):
                symbols, scales = _quantised(vectors, bits)
                planes = [pack((symbols >> bit & 1).astype(bool).reshape(-1)) for bit in range(bits)]
                shelf.put(f"{side}/{bits}/{name}", np.stack(planes), task=task)
                shelf.put(f"{side}-scale/{bits}/{name}", scales, task=task)
        return True

    def get_matrix(self, shelf: Shelf, name: str, task: str, shape: tuple[int, int]) -> np.ndarray:
        sides: dict[str, list[np.ndarray]] = {"left": [], "right": []}
        for bits, _ in _GROUPS:
            if (f"left/{bits}/{name}", task) not in shelf:
                continue
            for (side, found), size in zip(sides.items(), shape, strict=True):
                planes = shelf.get(f"{side}/{bits}/{name}", task=task)
                scales = shelf.get(f"{side}-scale/{bits}/{name}", task=task).astype(np.float32)
                symbols = sum(unpack(plane, scales.size * size).astype(np.int32) << b for b, plane in enumerate(planes))
                levels = np.asarray(symbols).reshape(scales.size, size) - (2 ** (bits - 1) - 0.5)
                found.append(levels.astype(np.float32) * scales[:, None])
        product: np.ndarray = np.concatenate(sides["left"]).T @ np.concatenate(sides["right"])
        return product

    def keeps(self, shelf: Shelf, name: str, task: str) -> bool:
        return any((f"left/{bits}/{name}", task) in shelf for bits, _ in _GROUPS)


def _counts(shape: tuple[int, ...], budget: float) -> list[int]:
    """How many singular values each group holds, within `budget` bits per element."""
    left = budget * shape[0] * shape[1]
    most = min(shape)
    found: list[int] = []
    for bits, wanted in _GROUPS:
        cost = bits * sum(shape) + 2 * _SCALE_BITS
        count = min(int(left // cost), most - sum(found), most if wanted is None else wanted)
        found.append(count)
        left -= count * cost
    return found


def _quantised(vectors: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Symbols, int32 [K, N], of vectors [K, N] in 2^bits even levels around 0, and their steps, float16 [K]."""
    levels = 2**bits
    tops = np.abs(vectors).max(1)
    best = np.full(len(vectors), np.inf)
    symbols, scales = np.zeros(vectors.shape, np.int32), np.zeros(len(vectors), np.float16)
    for clip in _CLIPS:
        steps = (tops * clip / (levels / 2)).astype(np.float16)
        safe = np.maximum(steps.astype(np.float32), np.finfo(np.float16).tiny)[:, None]
        found = np.clip(np.floor(vectors / safe) + levels // 2, 0, levels - 1).astype(np.int32)
        decoded = (found - (levels // 2 - 0.5)) * steps.astype(np.float32)[:, None]
        error = np.square(decoded - vectors).sum(1)
        nearer = error < best
        best[nearer], symbols[nearer], scales[nearer] = error[nearer], found[nearer], steps[nearer]
    return symbols, scales
