"""From a file's names to places in the base, whoever wrote the file: wrappers off, Hugging Face's names translated."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace

from fusion.checkpoints.hugging_face import Place, full_name, is_hugging_face, place_of
from fusion.checkpoints.names import as_in_base, is_learned, unwrapped
from fusion.tensors import TensorSpec

_IMAGES_ALONE = "conv1.weight"
"""The first layer of every image encoder of open_clip: without `visual.` in front, the file holds nothing else."""


class Naming:
    """How the names of one file are read.

    Args:
        names: all of the file's: what some of them are tells how to read the others.
        base: the base's tensors.

    Attributes:
        hugging_face: whether they are Hugging Face's.
        wrappers: what is dropped in front of names, with how many names had it.
    """

    def __init__(self, names: Iterable[str], base: Mapping[str, TensorSpec]) -> None:
        self._base = base
        bare = dict(self._bare(name) for name in names)
        self.wrappers = Counter(wrapper for wrapper in bare.values() if wrapper)
        self.hugging_face = any(is_hugging_face(full_name(name)) for name in bare if name not in base)
        self._front = "visual." if _IMAGES_ALONE in bare and _IMAGES_ALONE not in base else ""

    def place(self, name: str) -> Place | None:
        """Where a tensor belongs, whether the base has that place or not; None: no CLIP has such a tensor."""
        bare, _ = self._bare(name)
        found = place_of(full_name(bare)) if self.hugging_face else Place(self._front + bare)
        return found and replace(found, name=as_in_base(found.name, self._base))

    def _bare(self, name: str) -> tuple[str, str]:
        """A name as the base may have it, and what was in front of it."""
        if name in self._base:  # the base may have such a name itself
            return name, ""
        wrapper, bare = unwrapped(name)
        return bare, wrapper


def is_spare(name: str, place: Place | None, spec: TensorSpec, base: Mapping[str, TensorSpec]) -> bool:
    """Whether a tensor can be left out: it holds nothing learned, and the base lacks it or has it in another form."""
    if is_learned(unwrapped(name)[1]):
        return False
    return place is None or place.name not in base or base[place.name].shape != spec.shape


def shape_at(place: Place, spec: TensorSpec) -> tuple[int, ...]:
    """The shape that a file's tensor has to have for a place in a tensor of the base."""
    shape = spec.shape
    if place.parts > 1:
        shape = (shape[0] // place.parts, *shape[1:])
    return shape[::-1] if place.transposed else shape
