"""A set of labelled images, read and decoded on demand.

Columnar, 60 bytes an image, because a set may have millions: where each one is, its label and its sha256. What reads
its bytes is a `Reader`. Letters: N images.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from fusion.answers.images import decode
from fusion.errors import DataError, StoreError
from training.data.blocks import KEPT_BYTES, PLACE, Blocks, Reader

_ERRORS_SHOWN = 8


@dataclass(frozen=True)
class Sample:
    """One labelled image: its label, the sha256 that stands for it, and its name in error messages.

    The hash is that of the encoded file; of mode, size and pixels if there is no file.
    """

    label: int
    sha256: str
    origin: str


class Rows(Sequence[Sample]):
    """Labelled images, not read yet.

    Args:
        reader: of all of them.
        labels: index into the task's classes, int64 [N].
        hashes: sha256, uint8 [N, 32].
        places: `PLACE` [N].
    """

    def __init__(self, reader: Reader, labels: np.ndarray, hashes: np.ndarray, places: np.ndarray) -> None:
        self.reader = reader
        self.labels = labels
        self.hashes = hashes
        self.places = places

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        place = self.places[index]
        return Sample(int(self.labels[index]), self.hashes[index].tobytes().hex(), self.reader.origin(place))

    def __iter__(self) -> Iterator[Sample]:
        return (self[number] for number in range(len(self)))

    def take(self, chosen: np.ndarray) -> Rows:
        """Some of them: indices, or bool [N]."""
        return Rows(self.reader, self.labels[chosen], self.hashes[chosen], self.places[chosen])

    def labelled(self, labels: np.ndarray) -> Rows:
        """The same images with other labels."""
        return Rows(self.reader, labels, self.hashes, self.places)

    def in_identity_order(self) -> Rows:
        """Sorted by label, then by sha256: the same wherever the images come from."""
        words = self.hashes.view(">u8")
        return self.take(np.lexsort([words[:, 3], words[:, 2], words[:, 1], words[:, 0], self.labels]))

    def share(self, *, of: int = 0) -> np.ndarray:
        """A number in [0, 1) for each image, decided by its content: float64 [N]. `of`: which four bytes count."""
        first = 4 * of
        return np.ascontiguousarray(self.hashes[:, first : first + 4]).view(">u4")[:, 0] / 2.0**32


class _Made:
    """Images that functions give."""

    def __init__(self, made: Sequence[Callable[[], bytes]], origins: Sequence[str], hashes_bytes: bool) -> None:
        self._made = made
        self._origins = origins
        self.hashes_bytes = hashes_bytes

    def read(self, place: np.void) -> bytes:
        return self._made[place["start"]]()

    def origin(self, place: np.void) -> str:
        return self._origins[place["start"]]

    @property
    def is_remote(self) -> bool:
        return False

    def problems(self, places: np.ndarray) -> list[str]:
        def look(place: np.void) -> str | None:
            return problem_of(self.read(place), self.origin(place))

        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # Pillow decodes without the GIL
            return [problem for problem in pool.map(look, places) if problem]

    def group(self, places: np.ndarray) -> np.ndarray:
        return np.full(len(places), -1, np.int64)

    def read_together(self, places: np.ndarray) -> list[bytes]:
        return [self.read(place) for place in places]


def made_rows(samples: Sequence[Sample], made: Sequence[Callable[[], bytes]], *, hashes_bytes: bool = True) -> Rows:
    """Images whose bytes functions give, in the samples' order."""
    places = np.zeros(len(samples), PLACE)
    places["start"] = np.arange(len(samples))
    hashes = np.frombuffer(bytes.fromhex("".join(sample.sha256 for sample in samples)), np.uint8).reshape(-1, 32)
    labels = np.array([sample.label for sample in samples], dtype=np.int64)
    return Rows(_Made(made, [sample.origin for sample in samples], hashes_bytes), labels, hashes, places)


class ImageSet:
    """Labelled images in a fixed order. Holds no pixels, and bytes only of what is read in blocks."""

    def __init__(self, samples: Rows, *, background: str | None = None, kept_bytes: int | None = None) -> None:
        self.samples = samples
        self.background = background
        """Colour under transparent pixels, as `#rrggbb`; None: white."""
        self.labels = samples.labels
        self.blocks = Blocks(
            samples.reader, samples.places, kept_bytes=KEPT_BYTES if kept_bytes is None else kept_bytes
        )

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def is_remote(self) -> bool:
        """Whether images come over a network, one by one."""
        return self.samples.reader.is_remote

    def take(self, chosen: np.ndarray) -> ImageSet:
        """Some of the images, read as the whole set is."""
        kept_bytes = 0 if self.blocks.streamed else None
        return ImageSet(self.samples.take(chosen), background=self.background, kept_bytes=kept_bytes)

    def passed(self, batch_size: int) -> Iterator[np.ndarray]:
        """Batches of indices that are every image once: in order, or as they are stored where that is in blocks."""
        if not self.blocks.streamed:
            for first in range(0, len(self), batch_size):
                yield np.arange(first, min(first + batch_size, len(self)))
            return
        blocks = self.blocks.in_order
        for number, images in enumerate(blocks):
            self.blocks.hold(range(number, min(number + 2, len(blocks))))
            yield from np.split(images, range(batch_size, len(images), batch_size))
        self.blocks.close()

    def origin(self, index: int) -> str:
        """What messages call the image."""
        return self.samples.reader.origin(self.samples.places[index])

    def encoded(self, index: int) -> bytes:
        """The image's file as it is in the source.

        Raises `DataError` if it can't be read any more, or is not what it was when its sha256 was taken.
        """
        try:
            data = self.blocks.read(index)
        except (OSError, StoreError) as error:
            raise DataError(f"{self.origin(index)} can't be read: {error}") from error
        if self.samples.reader.hashes_bytes and hashlib.sha256(data).digest() != self.samples.hashes[index].tobytes():
            raise DataError(
                f"{self.origin(index)} has changed since it was read for the first time: run again, with --verify if "
                "its size and time are as before"
            )
        return data

    def image(self, index: int) -> Image.Image:
        """The decoded image, RGB. Raises `ImageError` naming the file."""
        return decode(self.encoded(index), self.origin(index), background=self.background)

    def broken(self) -> list[str]:
        """What is wrong with the images that can't be decoded, as far as they have been verified."""
        return self.samples.reader.problems(self.samples.places)


def problem_of(encoded: bytes, origin: str) -> str | None:
    """Decode an image once: what is wrong with it, or None."""
    try:
        decode(encoded, origin)
    except DataError as error:
        return str(error)
    return None


def sha256_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def raise_all(problems: Sequence[str]) -> None:
    """Raise one `DataError` that lists the problems, so that a data set can be repaired in one go; none: return."""
    if problems:
        more = len(problems) - _ERRORS_SHOWN
        raise DataError("; ".join(problems[:_ERRORS_SHOWN]) + (f"; and {more} more like these" if more > 0 else ""))
