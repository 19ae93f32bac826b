"""Which images a step sees, as uint8 pixels: a pure function of seed and step, so that any step can be made again.

Decoding and resizing cost more than a step of a small model, so pixels are kept once they are made (up to
`CACHE_BYTES`; 15,000 images at 224 px) and the next batch is made in threads while the current one trains.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import torch
from open_clip.transform import image_transform_v2

from fusion.answers.clip import Clip, preprocess_config
from training.images import ImageSet

CACHE_BYTES = 2 << 30


def generator_for(seed: int, purpose: str, step: int) -> torch.Generator:
    """Random numbers of one purpose in one step. Independent of everything drawn before."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{step}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


class Sampler:
    """Image indices of every step's global batch.

    Evenly over images: an endless row of shuffles of the training set, cut into batches, so that every image comes once
    an epoch. `balanced`: an endless row of shuffles of the classes, and a random image of each.
    """

    def __init__(self, labels: np.ndarray, *, batch_size: int, seed: int, balanced: bool) -> None:
        self._batch_size = batch_size
        self._seed = seed
        self._balanced = balanced
        self._members = [torch.from_numpy(np.flatnonzero(labels == label)) for label in np.unique(labels)]
        self._row_length = len(self._members) if balanced else len(labels)
        self._last_shuffle: tuple[int, torch.Tensor] | None = None

    def batch(self, step: int) -> torch.Tensor:
        """int64 [batch_size]."""
        start = step * self._batch_size
        places = range(start, start + self._batch_size)
        chosen = torch.tensor(
            [int(self._shuffle(place // self._row_length)[place % self._row_length]) for place in places]
        )
        if not self._balanced:
            return chosen
        share = torch.rand(self._batch_size, generator=generator_for(self._seed, "image", step), dtype=torch.float64)
        members = [self._members[int(label)] for label in chosen]
        return torch.stack([own[int(part * len(own))] for own, part in zip(members, share.tolist(), strict=True)])

    def _shuffle(self, number: int) -> torch.Tensor:
        if self._last_shuffle is None or self._last_shuffle[0] != number:
            order = torch.randperm(self._row_length, generator=generator_for(self._seed, "shuffle", number))
            self._last_shuffle = number, order
        return self._last_shuffle[1]


class Pixels:
    """Images of a set at canvas size, uint8, the way the model's own preprocessing resizes and cuts them."""

    def __init__(self, clip: Clip, images: ImageSet, canvas: tuple[int, int], *, num_threads: int = 0) -> None:
        config = replace(preprocess_config(clip.preprocess_cfg), size=canvas)
        self._resize = image_transform_v2(config, is_train=False)
        self._mean, self._std = channel_statistics(clip)
        self._images = images
        self._canvas = canvas
        self._room = CACHE_BYTES // (3 * canvas[0] * canvas[1])
        self._kept: dict[int, torch.Tensor] = {}
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="pixels") if num_threads else None
        self._coming: dict[int, Future[torch.Tensor]] = {}

    def __enter__(self) -> Pixels:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool:
            self._pool.shutdown(cancel_futures=True)

    def batch(self, indices: Sequence[int]) -> torch.Tensor:
        """uint8 [B, 3, h, w]."""
        coming, self._coming = self._coming, {}
        return torch.stack([coming[index].result() if index in coming else self._one(index) for index in indices])

    def expect(self, indices: Sequence[int]) -> None:
        """Start making a batch that will be asked for next. Without threads of its own it does nothing."""
        if self._pool:
            self._coming = {
                index: self._pool.submit(self._one, index) for index in set(indices) if index not in self._kept
            }

    def _one(self, index: int) -> torch.Tensor:
        kept = self._kept.get(index)
        if kept is not None:
            return kept
        normalised = self._resize(self._images.image(index))
        pixels = ((normalised * self._std + self._mean) * 255).round_().clamp_(0, 255).to(torch.uint8)
        with self._lock:
            if len(self._kept) < self._room:
                self._kept[index] = pixels
        return pixels


def channel_statistics(clip: Clip) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of the model's normalisation, each [3, 1, 1]."""
    mean, std = (torch.tensor(clip.preprocess_cfg[key], dtype=torch.float32).view(3, 1, 1) for key in ("mean", "std"))
    return mean, std
