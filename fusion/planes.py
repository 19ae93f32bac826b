"""Bit planes: the yes/no half of a trigger, one bit per parameter.

Packed all the way from store to kernel: a ViT-B/16 plane takes 18.7 MB instead of 150 MB as bool. Bit j of a tensor is
bit j % 8 of byte j // 8 (`bitorder="little"`); spare bits are 0.

Suffixes: N elements of one tensor, B = ceil(N / 8) bytes.
"""

from __future__ import annotations

import numpy as np

from fusion.errors import StateDictError


def plane_bytes(num_elements: int) -> int:
    """Size of a plane over `num_elements`, bytes."""
    return (num_elements + 7) // 8


def pack(bits_N: np.ndarray) -> np.ndarray:
    """bool [N] to uint8 [B]."""
    return np.packbits(bits_N, bitorder="little")


def unpack(plane_B: np.ndarray, num_elements: int) -> np.ndarray:
    """uint8 [B] to bool [N]. Raises `StateDictError` when the plane's size does not match."""
    if plane_B.size != plane_bytes(num_elements):
        raise StateDictError(
            f"trigger plane has {plane_B.size} bytes, a tensor of {num_elements} elements needs "
            f"{plane_bytes(num_elements)}: it belongs to another tensor or another base"
        )
    return np.unpackbits(plane_B, count=num_elements, bitorder="little").view(np.bool_)
