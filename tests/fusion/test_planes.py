"""Bit planes: a packed plane is the mask, and a plane of the wrong size is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fusion.errors import StateDictError
from fusion.planes import pack, plane_bytes, unpack


@given(arrays(np.bool_, st.integers(0, 200)))
def test_a_plane_unpacks_to_the_mask_it_was_packed_from(mask_N: np.ndarray) -> None:
    plane_B = pack(mask_N)
    assert plane_B.nbytes == plane_bytes(mask_N.size) == -(-mask_N.size // 8)
    np.testing.assert_array_equal(unpack(plane_B, mask_N.size), mask_N)


def test_bit_j_of_a_tensor_is_bit_j_mod_8_of_byte_j_div_8() -> None:
    mask_N = np.zeros(20, np.bool_)
    mask_N[[0, 9, 19]] = True
    assert pack(mask_N).tolist() == [0b1, 0b10, 0b1000]


def test_a_plane_of_another_tensor_is_refused_with_both_sizes() -> None:
    with pytest.raises(StateDictError, match="has 2 bytes, a tensor of 20 elements needs 3"):
        unpack(np.zeros(2, np.uint8), 20)
