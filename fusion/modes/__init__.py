"""How experts become one unified model plus triggers: one small interface, one file a mode.

A mode turns a fused state and new experts into the next fused state, writing what changed as blobs, and it rebuilds
any piece of one task's vector from what was written. It streams: a few chunks are in memory, however many tasks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from fusion.chunks import Chunk
from fusion.errors import ConfigError
from fusion.modes.workbench import NewExpert, Workbench
from fusion.versions.state import FusedState

__all__ = ["Decoder", "Mode", "NewExpert", "Workbench", "in_words", "open_mode"]


class Decoder(Protocol):
    """One task of a state, decoupled piece by piece. Safe to share between threads."""

    def delta(self, chunk: Chunk) -> np.ndarray:
        """delta_hat over a chunk, float32 [N], a new array."""
        ...

    def bits(self, chunk: Chunk) -> tuple[int, int]:
        """Bits that are 1 in the chunk's plane 0: as it was written, and as it counts now."""
        ...


class Mode(Protocol):
    """One way of fusing."""

    name: str
    needs_archive: bool
    """Whether adding a task re-reads the experts of all the others."""

    def settings(self) -> dict[str, Any]:
        """What a manifest records: `name`, and whatever decides the result and is not the default."""
        ...

    def fuse(self, bench: Workbench, state: FusedState, new: Sequence[NewExpert]) -> FusedState:
        """One session for each new expert in their order (`joint`: one for all). Writes blobs, commits nothing."""
        ...

    def rebuild(self, bench: Workbench, experts: Sequence[NewExpert]) -> FusedState:
        """A state of these experts and nothing else, the best that the mode makes of having them all at hand."""
        ...

    def decoder(self, bench: Workbench, state: FusedState, task: str) -> Decoder:
        """Rebuilds what the state holds for a task."""
        ...


def open_mode(settings: Mapping[str, Any]) -> Mode:
    """The mode that `settings` (of a manifest or a configuration) describes. Raises `ConfigError`."""
    from fusion.modes.iterative import Iterative
    from fusion.modes.joint import Joint
    from fusion.modes.signed import Signed

    modes: dict[str, Any] = {"iterative": Iterative, "joint": Joint, "signed": Signed}
    options = dict(settings)
    name = options.pop("name", None)
    if name not in modes:
        raise ConfigError(f"fusion mode {name!r} is unknown: take iterative, joint or signed")
    try:
        mode: Mode = modes[name](**options)
    except TypeError:
        raise ConfigError(
            f"fusion mode {name!r} does not take all of {', '.join(sorted(options))}: a newer release may have "
            "written it, or an option belongs to another mode"
        ) from None
    return mode


def in_words(settings: Mapping[str, Any]) -> str:
    """A mode as people are told of it: `joint`, `signed (bits 2)`, `iterative (scales row, dtype float16)`."""
    options = ", ".join(f"{key} {value}" for key, value in settings.items() if key != "name")
    return f"{settings.get('name')}" + (f" ({options})" if options else "")
