"""Names of a CLIP's tensors, in open_clip's own spelling and in what training leaves around it.

A wrapper adds a segment in front of every name (`DistributedDataParallel`: `module.`), a compiler one in the middle.
Some buffers hold nothing that was learned: their presence depends on the release of a library.
"""

from __future__ import annotations

from collections.abc import Collection

WRAPPERS = ("module", "_orig_mod", "model", "clip")
"""Segments that are dropped in front of a name, however often and in whichever order they stand there."""
_COMPILED = "_orig_mod"
_NOT_LEARNED = frozenset(
    {"position_ids", "attn_mask", "attention_mask", "causal_mask", "num_batches_tracked"}
    | {"input_resolution", "context_length", "vocab_size"}  # numbers that OpenAI's own files carry
)
_TEXT = "text."
"""What open_clip puts in front of a text encoder's tensors where it is a module of its own."""


def of_images(name: str) -> bool:
    """Whether a tensor of a CLIP belongs to the side that encodes images."""
    return name.startswith("visual.")


def is_learned(name: str) -> bool:
    """False for masks, counters and constants: the base's stand in for a missing one, and a superfluous one is left."""
    return name.rpartition(".")[2] not in _NOT_LEARNED


def unwrapped(name: str) -> tuple[str, str]:
    """What wrappers put in front of a name, and the name without them.

    >>> unwrapped("module._orig_mod.visual._orig_mod.proj")
    ('module._orig_mod.', 'visual.proj')
    """
    segments = name.split(".")
    count = 0
    while count < len(segments) - 1 and segments[count] in WRAPPERS:
        count += 1
    kept = [segment for segment in segments[count:] if segment != _COMPILED]
    return "".join(f"{segment}." for segment in segments[:count]), ".".join(kept)


def as_in_base(name: str, base: Collection[str]) -> str:
    """The name that the base has for a tensor: open_clip writes a text encoder's with and without `text.`."""
    if name not in base:
        for other in (name.removeprefix(_TEXT), _TEXT + name):
            if other in base:
                return other
    return name
