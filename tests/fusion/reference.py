"""The method again in plain numpy, straight from the equations: whole arrays, boolean masks, one task after another."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fusion.planes import unpack

_GROUP = 8


def unify(deltas: Sequence[np.ndarray]) -> tuple[np.ndarray, list[np.ndarray]]:
    """tau and the masks of all task vectors at once."""
    total = np.zeros_like(deltas[0])
    for delta in deltas:
        total = total + delta
    sign = np.where(total > 0, np.float32(1), np.float32(-1))
    masks = [delta * sign > 0 for delta in deltas]
    return sign * np.max([mask * np.abs(delta) for mask, delta in zip(masks, deltas, strict=True)], axis=0), masks


def scale_sum(masks: Sequence[np.ndarray], scales: Sequence[float], size: int) -> np.ndarray:
    """sum lambda_i b_i, float32, added in groups of eight tasks."""
    total = np.zeros(size, np.float32)
    for first in range(0, len(masks), _GROUP):
        group = np.zeros(size, np.float32)
        for mask, scale in zip(masks[first : first + _GROUP], scales[first : first + _GROUP], strict=True):
            group = group + np.float32(scale) * mask.astype(np.float32)
        total = total + group
    return total


def mean(values: np.ndarray) -> float:
    return float(np.abs(values).sum(dtype=np.float64)) / values.size if values.size else 0.0


def rescale(norm: float, masked: float) -> float:
    return norm / masked if masked > 0 else 0.0


def sessions(deltas: np.ndarray) -> tuple[np.ndarray, list[np.ndarray], list[float]]:
    """Mode `iterative` by its definition: tau, masks and scales after the last row of `deltas` [T, N]."""
    unified, masks, scales, norms = np.zeros(deltas.shape[1], np.float32), [], [], []
    for delta in deltas:
        old = [np.float32(scale) * mask * unified for scale, mask in zip(scales, masks, strict=True)]
        unified, masks = unify([*old, delta])
        norms.append(mean(delta))
        scales = [rescale(n, mean(unified * m)) for n, m in zip(norms, masks, strict=True)]
    return unified, masks, scales


def one_session(
    unified: np.ndarray, masks: Sequence[np.ndarray], scales: Sequence[float], delta: np.ndarray
) -> tuple[np.ndarray, list[np.ndarray]]:
    """The closed form of one session: tau' and all masks, the new one last."""
    largest = np.max([np.float32(s) * m for s, m in zip(scales, masks, strict=True)] or [np.zeros_like(delta)], axis=0)
    up = unified * scale_sum(masks, scales, delta.size) + delta > 0
    kept = np.where(up, unified > 0, unified < 0)
    new = np.where(up, delta > 0, delta < 0)
    size = np.maximum(
        np.where(kept, np.abs(unified) * largest.astype(np.float32), np.float32(0)),
        np.where(new, np.abs(delta), np.float32(0)),
    )
    return np.where(up, size, -size), [mask & kept for mask in masks] + [new]


def mask_now(plane_B: np.ndarray, last_flip_N: np.ndarray, session: int) -> np.ndarray:
    """A task's mask as it is now, bool [N]: the plane written in its session, less the bits lost since."""
    return unpack(plane_B, last_flip_N.size) & (last_flip_N <= session)
