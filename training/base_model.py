"""The base's model for one task after another: built once, its weights read anew for each.

Building takes longer than reading: every weight is drawn at random first, and a tokenizer is parsed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from fusion.answers.clip import Clip, build_clip, load_tensors
from fusion.store.node_cache import NodeCache
from fusion.versions.bases import Base


class BaseModel:
    """A worker's model of the base.

    Args:
        base: what is fine-tuned.
        cache: this node's cache of the store that has it.
        device: where the model is.
    """

    def __init__(self, base: Base, cache: NodeCache, *, device: str = "cpu") -> None:
        self._base = base
        self._cache = cache
        self._device = device
        self._clip: Clip | None = None
        self._layout: dict[str, tuple[int, ...]] = {}

    @contextmanager
    def borrowed(self) -> Iterator[Clip]:
        """The model with the base's weights, to be trained in place while the block runs.

        It is kept for the next block if this one ends well and leaves every tensor as it was laid out in memory:
        kernels, and so rounding, go by that, and a task must not depend on the one before it.

        Raises `BaseMismatchError` when the base can't be built.
        """
        weights = self._cache.tensors(self._base.weights)
        clip, self._clip = self._clip, None
        if clip is None:
            clip = build_clip(self._base, weights, device=self._device)
            self._layout = _layout(clip.model)
        else:
            load_tensors(clip.model, ((name, weights.tensor(name)) for name in weights.specs))
        yield clip
        if _layout(clip.model) == self._layout:
            self._clip = clip


def _layout(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tensor.stride() for name, tensor in model.state_dict().items()}
