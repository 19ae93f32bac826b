"""A set of labelled images, decoded on demand."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from PIL import Image

from fusion.answers.images import decode
from fusion.errors import DataError

_ERRORS_SHOWN = 8


@dataclass(frozen=True)
class Sample:
    """One labelled image, not decoded yet.

    Attributes:
        label: index into the task's classes.
        sha256: of the encoded file; of mode, size and pixels if there is no file.
        origin: its name in error messages: its path, or file and row.
        read: its encoded bytes (JPEG, PNG, …).
    """

    label: int
    sha256: str
    origin: str
    read: Callable[[], bytes]


class ImageSet:
    """Labelled images in a fixed order. Holds no pixels: a folder's images stay on disk until they are used."""

    def __init__(self, samples: Sequence[Sample], *, background: str | None = None) -> None:
        self.samples = tuple(samples)
        self.background = background
        """Colour under transparent pixels, as `#rrggbb`; None: white."""
        self.labels = np.array([sample.label for sample in self.samples], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.samples)

    def encoded(self, index: int) -> bytes:
        """The image's file as it is in the source. Raises `DataError` if it cannot be read any more."""
        sample = self.samples[index]
        try:
            return sample.read()
        except OSError as error:
            raise DataError(f"{sample.origin} can't be read: {error}") from error

    def image(self, index: int) -> Image.Image:
        """The decoded image, RGB. Raises `ImageError` naming the file."""
        return decode(self.encoded(index), self.samples[index].origin, background=self.background)

    def broken(self) -> list[str]:
        """Decode every image once, and return what is wrong with those that cannot be decoded."""

        def problem_of(index: int) -> str | None:
            try:
                self.image(index)
            except DataError as error:
                return str(error)
            return None

        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # Pillow decodes without the GIL
            return [problem for problem in pool.map(problem_of, range(len(self))) if problem]


def sha256_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def raise_all(problems: Sequence[str]) -> None:
    """Raise one `DataError` that lists the problems, so that a data set can be repaired in one go; none: return."""
    if problems:
        more = len(problems) - _ERRORS_SHOWN
        raise DataError("; ".join(problems[:_ERRORS_SHOWN]) + (f"; and {more} more like these" if more > 0 else ""))
