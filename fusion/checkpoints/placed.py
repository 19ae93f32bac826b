"""A file's tensors put into their places in the base, one by one, and what comes of it: pieces, gaps, and misfits."""

from __future__ import annotations

from fusion.checkpoints.adapters import Product
from fusion.checkpoints.files import Checkpoint
from fusion.checkpoints.hugging_face import Place
from fusion.checkpoints.mismatch import mismatch
from fusion.checkpoints.names import is_learned, of_images
from fusion.checkpoints.pieces import Added, Piece, Replaced
from fusion.checkpoints.placement import shape_at
from fusion.errors import StateDictError
from fusion.tensors import TensorFile, is_fused

_SCALE = "logit_scale"
_PROJECTION = "visual.proj"


class Placed:
    """Pieces by the base's tensor. `label` is the file's, for messages."""

    def __init__(self, label: str, base: TensorFile) -> None:
        self.pieces: dict[str, list[Piece]] = {}
        self._label = label
        self._base = base
        self._strangers: dict[str, str] = {}
        self._missing: list[str] = []
        self._others: list[str] = []
        self._taken: dict[Place, str] = {}

    def replace(self, weights: Checkpoint, name: str, place: Place | None) -> None:
        """Put a tensor of the file in its place. Raises `StateDictError` if another one is there."""
        if place is None or place.name not in self._base:
            self._strangers[name] = place.name if place else name
            return
        spec, own = weights.specs[name], self._base.specs[place.name]
        wanted, there = shape_at(place, own), "" if name == place.name else f" for it ({place.name})"
        if spec.shape != wanted and not spec.elements == own.elements == 1:
            self._others.append(f"{name} has shape {list(spec.shape)}, the base has {list(wanted)}{there}")
        elif is_fused(place.name, own) != is_fused(place.name, spec):
            self._others.append(f"{name} has dtype {spec.dtype}, the base has {own.dtype}{there}")
        else:
            self._put(place, name, Replaced(place, weights, name))

    def add(self, weights: Checkpoint, product: Product, place: Place | None) -> None:
        """Add an adapter's product to its place. Raises `StateDictError` if another one is there."""
        if place is None or place.name not in self._base:
            self._strangers[product.module] = place.name if place else product.module
            return
        self._put(place, product.module, Added(place, weights, product))

    def fill_gaps(self, *, hugging_face: bool) -> list[str]:
        """Decide what may stay the base's where the file has nothing; the rest is missing. Returns it in words.

        Masks and counters stay, and the scale of the logits. So does all that encodes texts, if the file has none of
        it; and then the projection of the images, which Hugging Face's `CLIPVisionModel` lacks.
        """
        filled = {name for name, pieces in self.pieces.items() if len(pieces) == pieces[0].place.parts}
        touched = set(self.pieces) - {_SCALE}
        images_alone = bool(touched) and all(of_images(name) for name in touched)
        said: dict[str, None] = {}
        for name in self._base.specs:
            if name in filled or not is_learned(name):
                continue
            if name == _SCALE and touched:
                said["logit_scale"] = None
            elif images_alone and not of_images(name):
                said["text encoder"] = None
            elif images_alone and hugging_face and name == _PROJECTION and name not in self.pieces:
                said["projection"] = None
            else:
                self._missing.append(name)
        return list(said)

    def check(self) -> None:
        """Raises `StateDictError` with everything that does not fit."""
        if self._strangers or self._missing or self._others:
            raise mismatch(
                self._label,
                self._base.label,
                strangers=self._strangers,
                missing=self._missing,
                others=self._others,
                placed=len(self._taken),
            )

    def _put(self, place: Place, name: str, piece: Piece) -> None:
        if (first := self._taken.setdefault(place, name)) != name:
            raise StateDictError(f"{self._label}: {first!r} and {name!r} both are {place.name!r} of the base")
        self.pieces.setdefault(place.name, []).append(piece)
