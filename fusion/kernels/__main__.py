"""`python -m fusion.kernels`: compiles the kernels into numba's cache, so that no first fuse and no replica waits.

For `make setup` and for container images. Takes a second if the cache exists already.
"""

from __future__ import annotations

import numpy as np

from fusion.chunks import chunks_of
from fusion.kernels import compiled
from fusion.kernels.cpu import CpuKernels
from fusion.tensors import TensorSpec


def main() -> None:
    """Call every kernel with every combination of dtypes that fusing uses."""
    kernels = CpuKernels()
    (chunk,) = chunks_of({"x": TensorSpec("F32", (2, 16))})
    values_N, scales_S, levels_Q = np.ones(32, np.float32), np.ones(2, np.float32), np.ones(2, np.float32)
    planes_TB, sessions_T = np.zeros((1, 4), np.uint8), np.ones(1, np.int64)
    for flips in (np.uint8, np.uint16):
        last_flip_N = np.zeros(32, flips)
        scales_ST = kernels.masked_sums(values_N, last_flip_N, planes_TB, sessions_T, chunk.rows).astype(np.float32)
        arguments = (planes_TB, sessions_T, scales_ST, chunk.rows)
        kernels.unify_next(values_N, last_flip_N, values_N.copy(), *arguments, session=2, dtype="bfloat16")
        kernels.decouple(values_N, last_flip_N, planes_TB[0], 1, scales_S, chunk.rows)
    kernels.decouple(values_N, None, planes_TB[0], 1, scales_S, chunk.rows)
    kernels.unify_all(np.ones((2, 32), np.float32), chunk.rows, dtype="float16")
    kernels.sum_abs(values_N, chunk.rows)
    compiled.fit_levels(kernels.level_histogram(values_N, values_N, scales_S, chunk.rows, step=1), 2, 1)
    planes_KB = kernels.encode(values_N, values_N, scales_S, chunk.rows, levels_Q, bits=2)
    kernels.decode(planes_KB, values_N, scales_S, levels_Q, chunk.rows)
    kernels.add_to_profile(values_N.copy(), values_N, scales_S, chunk.rows)


if __name__ == "__main__":
    main()
