"""Images as callers have them: a path, bytes, or something with a name that is read when its turn comes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from fusion.errors import ConduError, DataError, ImageError


@dataclass(frozen=True)
class NamedImage:
    """An encoded image that is not read yet.

    Attributes:
        name: what answers and errors call it.
        read: returns its bytes. Called once, in another thread; may raise `ConduError`.
    """

    name: str
    read: Callable[[], bytes]


Image = NamedImage | str | os.PathLike[str] | bytes | tuple[str, bytes]
"""A path, encoded bytes, a name and encoded bytes, or a `NamedImage`."""


@dataclass(frozen=True)
class Read:
    """An image after an attempt to read it: its bytes, or why there are none."""

    name: str
    body: bytes
    problem: ConduError | None = None


def named(images: Iterable[Image]) -> Iterator[NamedImage]:
    """Every image with a name: its path, the name given, or `image-3` for the third."""
    for number, image in enumerate(images, 1):
        if isinstance(image, NamedImage):
            yield image
        elif isinstance(image, tuple):
            yield NamedImage(image[0], lambda body=image[1]: body)  # type: ignore[misc]
        elif isinstance(image, bytes):
            yield NamedImage(f"image-{number}", lambda body=image: body)  # type: ignore[misc]
        else:
            yield NamedImage(os.fspath(image), lambda path=Path(image): read_file(path))  # type: ignore[misc]


def read_file(path: Path) -> bytes:
    """A file's bytes. Raises `DataError` that names it."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror}") from error


def read_all(images: Iterable[NamedImage]) -> list[Read]:
    """Their bytes, or for each that can't be read or is empty the reason."""
    found = []
    for image in images:
        try:
            body = image.read()
            found.append(Read(image.name, body, None if body else ImageError(f"{image.name} is empty")))
        except ConduError as error:
            found.append(Read(image.name, b"", error))
    return found
