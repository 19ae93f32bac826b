"""What a step sees of a task's images: a pure function of seed and step, so that any step can be repeated.

Decoding and resizing cost more than a step of a small model, so resized pixels are cached (up to `CACHE_BYTES`: 15,000
images at 224 px), and threads prepare the next batch while the current one trains. A set that is read in blocks is not
cached, since an image comes back only after all others; its blocks are read ahead.

Letters: B images, h x w pixels of the augmentation's canvas, H x W of the model's input.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import torch
from open_clip.transform import image_transform_v2

from fusion.answers.clip import Clip, preprocess_config
from training.augment import Augmentation
from training.data.images import ImageSet
from training.held_out import held_out_images
from training.recipe import Recipe
from training.samplers import Sampler, WindowSampler, generator_for
from training.worker_group import WorkerGroup

CACHE_BYTES = 2 << 30
_BATCHES_AHEAD = 2
"""What has to be in memory of a set that is read in blocks: this batch and the next, which threads prepare."""
_S3_THREADS = 16
_BLOCK_THREADS = 2


class Pixels:
    """Images of a set at canvas size, uint8, resized and cropped as the model's own preprocessing does it."""

    def __init__(self, clip: Clip, images: ImageSet, canvas: tuple[int, int], *, num_threads: int = 0) -> None:
        config = replace(preprocess_config(clip.preprocess_cfg), size=canvas)
        self._resize = image_transform_v2(config, is_train=False)
        self._mean, self._std = channel_statistics(clip)
        self._images = images
        self._canvas = canvas
        self._room = 0 if images.blocks.streamed else CACHE_BYTES // (3 * canvas[0] * canvas[1])
        if not num_threads:  # who waits for a network or a disk leaves the cores to the step
            num_threads = _S3_THREADS if images.is_remote else _BLOCK_THREADS if images.blocks.streamed else 0
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
        """Start preparing the batch that will be asked for next. Does nothing without threads."""
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


class Batches:
    """This worker's share of every step's batch, augmented and normalised, on the model's device.

    Every random number is drawn for the whole batch, so all workers together see what one worker would.

    Args:
        held_out_steps: the first steps, which do not see held-out images.
    """

    def __init__(
        self,
        clip: Clip,
        images: ImageSet,
        recipe: Recipe,
        *,
        seed: int,
        workers: WorkerGroup,
        held_out_steps: int = 0,
        num_threads: int = 0,
    ) -> None:
        self._augmentation = Augmentation(recipe.augment, recipe.flip, clip.image_size)
        everything = np.arange(len(images))
        shown = everything[~held_out_images(torch.from_numpy(images.labels)).numpy()]
        self._samplers = [(chosen, _sampler(images, chosen, recipe, seed)) for chosen in (shown, everything)]
        self._blocks = images.blocks
        self._pixels = Pixels(clip, images, self._augmentation.canvas, num_threads=num_threads)
        self._labels = torch.from_numpy(images.labels)
        self._device = clip.device
        self._mean, self._std = (statistic.to(clip.device) for statistic in channel_statistics(clip))
        self._recipe = recipe
        self._seed = seed
        self._held_out_steps = held_out_steps
        self._share = slice(workers.rank, None, workers.size)

    def __enter__(self) -> Batches:
        self._pixels.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._pixels.__exit__(*error)
        self._blocks.close()

    def batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Images, float32 [B, 3, H, W], and labels, int64 [B]. Starts decoding the next step's images."""
        indices = self._indices(step)
        _, sampler = self._sampler(step)
        if isinstance(sampler, WindowSampler):
            self._blocks.hold(sampler.blocks(step, _BATCHES_AHEAD))
        drawn = self._augmentation.draw(self._recipe.batch_size, generator_for(self._seed, "augment", step))
        images = self._pixels.batch(indices.tolist()).to(self._device).float() / 255
        if step + 1 < self._recipe.steps and self._sampler(step) is self._sampler(step + 1):
            self._pixels.expect(self._indices(step + 1).tolist())
        images = (self._augmentation.apply(images, drawn[self._share]) - self._mean) / self._std
        if self._device.type == "cpu":
            images = images.contiguous(memory_format=torch.channels_last)
        return images, self._labels[indices].to(self._device)

    def _indices(self, step: int) -> torch.Tensor:
        """This worker's images of a step, int64 [B]."""
        chosen, sampler = self._sampler(step)
        return torch.from_numpy(chosen)[sampler.batch(step)[self._share]]

    def _sampler(self, step: int) -> tuple[np.ndarray, Sampler | WindowSampler]:
        """The images that a step may draw, and who draws them."""
        return self._samplers[step >= self._held_out_steps]


def _sampler(images: ImageSet, chosen: np.ndarray, recipe: Recipe, seed: int) -> Sampler | WindowSampler:
    labels, blocks = images.labels[chosen], images.blocks
    if not blocks.streamed:
        return Sampler(labels, batch_size=recipe.batch_size, seed=seed, balanced=recipe.balanced)
    sizes, of = images.samples.places["size"][chosen], blocks.of[chosen]
    return WindowSampler(
        labels, sizes, of, blocks.runs, batch_size=recipe.batch_size, seed=seed, balanced=recipe.balanced
    )


def channel_statistics(clip: Clip) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of the model's normalisation, each [3, 1, 1]."""
    mean, std = (torch.tensor(clip.preprocess_cfg[key], dtype=torch.float32).view(3, 1, 1) for key in ("mean", "std"))
    return mean, std
