"""How one side of an expert, images or texts, differs from the base's: in few numbers, read from its trigger.

Letters: R rows and C columns of a matrix, K components.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch.nn import functional as F

from fusion.answers.clip import Clip
from fusion.answers.short_texts import text_tower
from fusion.checkpoints.names import of_images
from fusion.decouple import DecoupledExpert
from fusion.modes import ComponentParts, PartsDecoder
from fusion.task_vectors import BUFFER

Factors = tuple[torch.Tensor, torch.Tensor]
"""u, [K, R], with the components' sizes in it, and v, [K, C]. float32."""
Rows = tuple[torch.Tensor, torch.Tensor]
"""Which rows of a table moved, ascending int64 [n], and by how much, float32 [n, C]."""

POSITIONS, TOKENS = "positional_embedding", "token_embedding.weight"
_STATISTICS, _COUNTS = (".running_mean", ".running_var"), ".num_batches_tracked"
"""Of BatchNorms. Nothing is computed with the counts."""


@dataclass(frozen=True, eq=False)
class Channels:
    """An expert's convolution with the BatchNorm behind it: scale ((W + u^T v) x) + shift, per channel of R.

    Attributes:
        scale: [R]; of the base's W, and already in `factors` and `kernel`.
        shift: [R].
        factors: of the change, u and v of a kernel's rows; None where it did not move.
        kernel: the whole of scale (W + change), in W's shape, of layers where that is as small as the change.
    """

    scale: torch.Tensor
    shift: torch.Tensor
    factors: Factors | None = None
    kernel: torch.Tensor | None = None

    @property
    def num_bytes(self) -> int:
        tensors = (self.scale, self.shift, self.kernel, *(self.factors or ()))
        return sum(tensor.nbytes for tensor in tensors if tensor is not None)


@dataclass(frozen=True, eq=False)
class LiveSide:
    """By names of tensors, or of layers; what did not move is missing.

    Attributes:
        factors: of matrices.
        deltas: of what is added, in its shape.
        tables: of what is looked up.
        statistics: of BatchNorms, as they are in the expert.
        channels: of convolutions, which a tower makes of the others (`LiveImages.prepared`).
    """

    factors: Mapping[str, Factors] = field(default_factory=dict)
    deltas: Mapping[str, torch.Tensor] = field(default_factory=dict)
    tables: Mapping[str, Rows] = field(default_factory=dict)
    statistics: Mapping[str, torch.Tensor] = field(default_factory=dict)
    channels: Mapping[str, Channels] = field(default_factory=dict)

    def to(self, device: torch.device) -> LiveSide:
        """The same on a device, before it is prepared."""
        factors, tables = (
            {name: (one.to(device), other.to(device)) for name, (one, other) in pairs.items()}
            for pairs in (self.factors, self.tables)
        )
        deltas, statistics = (
            {name: tensor.to(device) for name, tensor in tensors.items()} for tensors in (self.deltas, self.statistics)
        )
        return LiveSide(factors, deltas, tables, statistics)

    @cached_property
    def num_bytes(self) -> int:
        pairs = [*self.factors.values(), *self.tables.values()]
        tensors = [*self.deltas.values(), *(one for pair in pairs for one in pair)]
        return sum(tensor.nbytes for tensor in tensors) + sum(one.num_bytes for one in self.channels.values())


def image_side(expert: DecoupledExpert) -> LiveSide | None:
    """The image side of an expert, by the names of `visual`'s tensors; None if it has to be rebuilt."""
    return _side(expert, of_images, "visual.")


def text_side(expert: DecoupledExpert, clip: Clip) -> LiveSide | None:
    """The text side, by the names of the text tower's tensors; None if it has to be rebuilt."""
    prefix = "" if text_tower(clip.model) is clip.model else "text."
    return _side(expert, lambda name: not of_images(name) and name.startswith(prefix) and name != "logit_scale", prefix)


def _side(expert: DecoupledExpert, wanted: Callable[[str], bool], prefix: str) -> LiveSide | None:
    decoder = expert.decoder
    if not isinstance(decoder, PartsDecoder):
        return None
    statistics = {}
    for key in expert.trigger.specs:
        name = key.removeprefix(BUFFER)
        if name == key or not wanted(name) or name.endswith(_COUNTS):
            continue
        if not name.endswith(_STATISTICS):
            return None
        statistics[name.removeprefix(prefix)] = expert.trigger.tensor(key)
    factors: dict[str, Factors] = {}
    deltas: dict[str, torch.Tensor] = {}
    tables: dict[str, Rows] = {}
    for name in filter(wanted, expert.bench.specs):
        found, own, shape = decoder.parts(name), name.removeprefix(prefix), expert.bench.specs[name].shape
        added = own.rpartition(".")[2] == POSITIONS  # and not multiplied with
        if isinstance(found, ComponentParts):
            u, v = torch.from_numpy(found.u), torch.from_numpy(found.v)
            if own == TOKENS:
                return None
            if added:
                deltas[own] = u.T @ v
            else:
                factors[own] = (u, v)
        elif found is not None:
            rows, values = torch.from_numpy(found.rows), torch.from_numpy(found.values)
            if own == TOKENS:
                tables[own] = (rows, values)
            elif len(shape) < 2 or added or _small(shape, len(rows)):
                whole = torch.zeros(expert.bench.specs[name].num_rows, values.shape[1])
                whole[rows] = values
                deltas[own] = whole.reshape(shape)
            else:  # a row that moved is a component with a single row
                factors[own] = (F.one_hot(rows, shape[0]).float(), values)
    return LiveSide(factors, deltas, tables, statistics)


def _small(shape: tuple[int, ...], num_rows: int) -> bool:
    """Whether a convolution's kernels, such as those per channel, take less as a whole than as components of rows."""
    row = math.prod(shape[1:])
    return len(shape) == 4 and num_rows * (shape[0] + row) > shape[0] * row
