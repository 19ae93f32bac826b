"""What a file changes in the base, tensor by tensor: a piece of a tensor is replaced, or a product is added to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from fusion.checkpoints.adapters import Product
from fusion.checkpoints.files import Checkpoint
from fusion.checkpoints.hugging_face import Place
from fusion.tensors import TensorFile


class Piece(Protocol):
    """A change of one place."""

    @property
    def place(self) -> Place: ...

    def write(self, own: np.ndarray) -> None:
        """Change a float32 view of the base's tensor that lies as the file's does."""
        ...


@dataclass(frozen=True)
class Replaced:
    """A place that holds what the file has."""

    place: Place
    weights: Checkpoint
    name: str

    def write(self, own: np.ndarray) -> None:
        own[...] = self.weights.float32(self.name).reshape(own.shape)


@dataclass(frozen=True)
class Added:
    """A place to which an adapter adds a product, in float64."""

    place: Place
    weights: Checkpoint
    product: Product

    def write(self, own: np.ndarray) -> None:
        own[...] = own.astype(np.float64) + self.product.values(self.weights, own.shape)


def changed_values(base: TensorFile, name: str, pieces: list[Piece]) -> np.ndarray:
    """One tensor of the base with its changes, float32, in the base's shape. Peak: the tensor and its largest piece."""
    values = base.float32(name)
    for piece in pieces:
        place, own = piece.place, values
        if place.parts > 1:
            size = len(values) // place.parts
            own = values[place.part * size : (place.part + 1) * size]
        piece.write(own.T if place.transposed else own)
    return values
