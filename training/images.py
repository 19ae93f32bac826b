"""A set of labelled images that are decoded when they are asked for, and what can be wrong with one of them."""

from __future__ import annotations

import hashlib
import io
import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from PIL import Image

from fusion.errors import DataError, ImageError

_ERRORS_SHOWN = 8


@dataclass(frozen=True)
class Sample:
    """One labelled image, not decoded yet.

    Attributes:
        label: index into the task's classes.
        sha256: of the encoded file; of mode, size and pixels where there is no file.
        origin: what error messages call it: its path, or file and row.
        read: its encoded bytes (JPEG, PNG, …).
    """

    label: int
    sha256: str
    origin: str
    read: Callable[[], bytes]


class ImageSet:
    """Labelled images in a fixed order. Holds no pixels: a folder's images stay on disk until one is asked for."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self.samples = tuple(samples)
        self.labels = np.array([sample.label for sample in self.samples], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.samples)

    def encoded(self, index: int) -> bytes:
        """The image's file as it lies in the source. Raises `DataError` when it went away meanwhile."""
        sample = self.samples[index]
        try:
            return sample.read()
        except OSError as error:
            raise DataError(f"{sample.origin} can't be read: {error}") from error

    def image(self, index: int) -> Image.Image:
        """The decoded image, RGB. Raises `ImageError` naming the file."""
        return decode(self.encoded(index), self.samples[index].origin)

    def broken(self) -> list[str]:
        """Decode every image once; what is wrong with those that can't be."""

        def problem_of(index: int) -> str | None:
            try:
                self.image(index)
            except DataError as error:
                return str(error)
            return None

        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # PIL decodes outside the interpreter's lock
            return [problem for problem in pool.map(problem_of, range(len(self))) if problem]


def decode(encoded: bytes, origin: str) -> Image.Image:
    """Decode an image to RGB. Raises `ImageError` for what is no image or has more pixels than PIL thinks safe."""
    limit = Image.MAX_IMAGE_PIXELS
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # judged below, at PIL's lower limit
            image = Image.open(io.BytesIO(encoded))
        if limit is not None and image.width * image.height > limit:
            raise Image.DecompressionBombError
        return image.convert("RGB")
    except Image.DecompressionBombError:
        raise ImageError(f"{origin} has more than {limit} pixels, too many to decode safely: scale it down") from None
    except (OSError, SyntaxError, ValueError, EOFError, IndexError) as error:
        what = "is empty" if not encoded else f"is no image that can be decoded ({error})"
        raise ImageError(f"{origin} {what}: replace or remove it") from error


def sha256_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def raise_all(problems: Sequence[str]) -> None:
    """One `DataError` with every problem, so that a data set is mended in one go. None: nothing happens."""
    if problems:
        more = len(problems) - _ERRORS_SHOWN
        raise DataError("; ".join(problems[:_ERRORS_SHOWN]) + (f"; and {more} more like these" if more > 0 else ""))
