"""Which images a step trains on: a pure function of seed and step, so that any step can be repeated.

`Sampler` draws from the whole set. `WindowSampler` is for a set that is too large for memory and read in blocks: the
blocks come in random order, and images are drawn from a window of a few of them at a time.

Letters: N images, K blocks, B images of a batch.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch

from training.data.blocks import WINDOW_BYTES


def generator_for(seed: int, purpose: str, step: int) -> torch.Generator:
    """Random numbers for one purpose in one step, independent of everything drawn before."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{step}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


class Sampler:
    """Image indices of every step's global batch.

    Evenly over images: an endless sequence of shuffles of the training set, cut into batches, so that every image comes
    once per epoch. `balanced`: an endless sequence of shuffles of the classes, and a random image of each.
    """

    def __init__(self, labels: np.ndarray, *, batch_size: int, seed: int, balanced: bool) -> None:
        self._batch_size = batch_size
        self._seed = seed
        self._balanced = balanced
        self._members = [torch.from_numpy(np.flatnonzero(labels == label)) for label in np.unique(labels)]
        self._shuffle_length = len(self._members) if balanced else len(labels)
        self._last_shuffle: tuple[int, torch.Tensor] | None = None

    def batch(self, step: int) -> torch.Tensor:
        """int64 [B]."""
        start = step * self._batch_size
        places = range(start, start + self._batch_size)
        chosen = torch.tensor(
            [int(self._shuffle(place // self._shuffle_length)[place % self._shuffle_length]) for place in places]
        )
        if not self._balanced:
            return chosen
        share = torch.rand(self._batch_size, generator=generator_for(self._seed, "image", step), dtype=torch.float64)
        members = [self._members[int(label)] for label in chosen]
        return torch.stack([own[int(part * len(own))] for own, part in zip(members, share.tolist(), strict=True)])

    def _shuffle(self, number: int) -> torch.Tensor:
        if self._last_shuffle is None or self._last_shuffle[0] != number:
            order = torch.randperm(self._shuffle_length, generator=generator_for(self._seed, "shuffle", number))
            self._last_shuffle = number, order
        return self._last_shuffle[1]


@dataclass(frozen=True)
class _Window:
    """Some blocks whose images are drawn together.

    Attributes:
        start: the place of its first image in the endless sequence of images.
        blocks: in the order in which they are read.
        order: the images in the order in which they are drawn, int64; as many as the blocks hold.
    """

    start: int
    blocks: list[int]
    order: torch.Tensor

    @property
    def stop(self) -> int:
        return self.start + len(self.order)


class WindowSampler:
    """Image indices of every step's global batch, for a set that is read in blocks.

    An epoch is a random order of the blocks; pieces of one row group stay together and in order. It is cut into windows
    of about `WINDOW_BYTES`, and each window is shuffled by itself, so every image comes once per epoch. `balanced`
    draws the window's classes evenly, as often as the window has images.

    Args:
        labels: int64 [N].
        sizes: encoded bytes, int64 [N].
        block_of: the block of every image, int64 [N].
        run_of: blocks with one number are read one after the other, int64 [K], ascending.
    """

    def __init__(
        self,
        labels: np.ndarray,
        sizes: np.ndarray,
        block_of: np.ndarray,
        run_of: np.ndarray,
        *,
        batch_size: int,
        seed: int,
        balanced: bool,
    ) -> None:
        self._labels = labels
        self._batch_size = batch_size
        self._seed = seed
        self._balanced = balanced
        self._members = np.argsort(block_of, kind="stable")
        self._counts = np.bincount(block_of, minlength=len(run_of))
        self._first = np.cumsum(self._counts) - self._counts
        self._bytes = np.bincount(block_of, sizes, minlength=len(run_of))
        self._runs = np.split(np.arange(len(run_of)), np.flatnonzero(np.diff(run_of)) + 1)
        self._epoch: tuple[int, list[tuple[int, list[int]]]] | None = None
        self._windows: dict[tuple[int, int], _Window] = {}

    def batch(self, step: int) -> torch.Tensor:
        """int64 [B]."""
        start = step * self._batch_size
        stop = start + self._batch_size
        return torch.cat([
            window.order[max(start - window.start, 0) : stop - window.start] for window in self._spanning(start, stop)
        ])  # fmt: skip

    def blocks(self, step: int, num_batches: int) -> list[int]:
        """The blocks to have or to begin to read at a step, in order: all that the next batches draw from, and of the
        window after them as large a share as has been drawn of their last one."""
        start = step * self._batch_size
        stop = start + num_batches * self._batch_size
        now = self._spanning(start, stop)
        (following,) = self._spanning(now[-1].stop, now[-1].stop + 1)
        share = (min(stop, now[-1].stop) - now[-1].start) / len(now[-1].order)
        ahead = following.blocks[: int(np.ceil(share * len(following.blocks)))]
        return list(dict.fromkeys([*(block for window in now for block in window.blocks), *ahead]))

    def _spanning(self, start: int, stop: int) -> list[_Window]:
        """The windows that hold the places [start, stop) of the endless sequence."""
        found = []
        while start < stop:
            epoch, place = divmod(start, len(self._labels))
            windows = self._windows_of(epoch)
            number = int(np.searchsorted([first for first, _ in windows], place, side="right")) - 1
            found.append(self._window(epoch, number))
            start = found[-1].stop
        return found

    def _windows_of(self, epoch: int) -> list[tuple[int, list[int]]]:
        """The windows of an epoch: the place of the first image in it, and the blocks."""
        if self._epoch is None or self._epoch[0] != epoch:
            order = torch.randperm(len(self._runs), generator=generator_for(self._seed, "blocks", epoch))
            windows: list[tuple[int, list[int]]] = []
            place, num_bytes = 0, float("inf")
            for block in (int(block) for run in order.tolist() for block in self._runs[run]):
                if not self._counts[block]:
                    continue
                if num_bytes >= WINDOW_BYTES:
                    windows.append((place, []))
                    num_bytes = 0.0
                windows[-1][1].append(block)
                num_bytes += self._bytes[block]
                place += int(self._counts[block])
            self._epoch = epoch, windows
        return self._epoch[1]

    def _window(self, epoch: int, number: int) -> _Window:
        if (epoch, number) not in self._windows:
            first, blocks = self._windows_of(epoch)[number]
            images = np.concatenate([self._members[self._first[b] : self._first[b] + self._counts[b]] for b in blocks])
            generator = generator_for(self._seed, f"window/{epoch}", number)
            order = self._balanced_draw(images, generator) if self._balanced else _shuffled(images, generator)
            for old in list(self._windows)[:-3]:
                del self._windows[old]
            self._windows[epoch, number] = _Window(epoch * len(self._labels) + first, blocks, order)
        return self._windows[epoch, number]

    def _balanced_draw(self, images: np.ndarray, generator: torch.Generator) -> torch.Tensor:
        """As many draws as there are images: shuffles of their classes, and a random image of each class."""
        labels = self._labels[images]
        members = [images[labels == label] for label in np.unique(labels)]
        rounds = -(-len(images) // len(members))
        classes = torch.cat([torch.randperm(len(members), generator=generator) for _ in range(rounds)])[: len(images)]
        share = torch.rand(len(images), generator=generator, dtype=torch.float64)
        own = [members[number] for number in classes.tolist()]
        return torch.tensor([of[int(part * len(of))] for of, part in zip(own, share.tolist(), strict=True)])


def _shuffled(images: np.ndarray, generator: torch.Generator) -> torch.Tensor:
    return torch.from_numpy(images)[torch.randperm(len(images), generator=generator)]
