"""The kernels on the CPU: buffers and look-up tables around the compiled loops."""

from __future__ import annotations

import threading
from functools import lru_cache

import numpy as np

from fusion.kernels import LEVEL_BINS, LEVEL_BINS_PER_UNIT, StateDtype, compiled

ROUNDING: dict[StateDtype, int] = {"float32": 0, "float16": 1, "bfloat16": 2}
"""The compiled kernels' numbers for the dtypes."""


class CpuKernels:
    """`Kernels` in numba. Holds one buffer per thread, for the patterns of a chunk."""

    def __init__(self) -> None:
        self._buffers = threading.local()

    def unify_next(
        self,
        tau_N: np.ndarray,
        last_flip_N: np.ndarray,
        delta_N: np.ndarray,
        planes_TB: np.ndarray,
        sessions_T: np.ndarray,
        scales_ST: np.ndarray,
        starts_S: np.ndarray,
        *,
        session: int,
        dtype: StateDtype,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        plane_B = np.empty(planes_TB.shape[1], np.uint8)
        masked_ST = np.zeros((starts_S.size - 1, planes_TB.shape[0] + 1))
        norms_S, squares_2 = np.zeros(starts_S.size - 1), np.zeros(2)
        compiled.unify_next(
            tau_N,
            last_flip_N,
            delta_N,
            self._patterns(planes_TB, last_flip_N, sessions_T),
            scales_ST,
            starts_S,
            last_flip_N.dtype.type(session),
            ROUNDING[dtype],
            plane_B,
            masked_ST,
            norms_S,
            squares_2,
        )
        return plane_B, masked_ST, norms_S, squares_2

    def masked_sums(
        self,
        tau_N: np.ndarray,
        last_flip_N: np.ndarray | None,
        planes_TB: np.ndarray,
        sessions_T: np.ndarray,
        starts_S: np.ndarray,
    ) -> np.ndarray:
        masked_ST = np.zeros((starts_S.size - 1, planes_TB.shape[0]))
        compiled.masked_sums(tau_N, self._patterns(planes_TB, last_flip_N, sessions_T), starts_S, masked_ST)
        return masked_ST

    def unify_all(
        self, deltas_TN: np.ndarray, starts_S: np.ndarray, *, dtype: StateDtype
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        num_tasks, size = deltas_TN.shape
        tau_N = np.empty(size, np.float32)
        planes_TB = np.empty((num_tasks, (size + 7) // 8), np.uint8)
        masked_ST, norms_ST = (np.zeros((starts_S.size - 1, num_tasks)) for _ in range(2))
        squares_2 = np.zeros(2)
        compiled.unify_all(deltas_TN, starts_S, ROUNDING[dtype], tau_N, planes_TB, masked_ST, norms_ST, squares_2)
        return tau_N, planes_TB, masked_ST, norms_ST, squares_2

    def decouple(
        self,
        tau_N: np.ndarray,
        last_flip_N: np.ndarray | None,
        plane_B: np.ndarray,
        session: int,
        scales_S: np.ndarray,
        starts_S: np.ndarray,
    ) -> np.ndarray:
        delta_N = np.empty(tau_N.size, np.float32)
        flips_N = np.broadcast_to(np.zeros(1, np.uint8), tau_N.shape) if last_flip_N is None else last_flip_N
        compiled.decouple(tau_N, flips_N, plane_B, session, scales_S, starts_S, delta_N)
        return delta_N

    def sum_abs(self, values_N: np.ndarray, starts_S: np.ndarray) -> np.ndarray:
        sums_S = np.empty(starts_S.size - 1)
        compiled.sum_abs_segments(values_N, starts_S, sums_S)
        return sums_S

    def level_histogram(
        self, delta_N: np.ndarray, profile_N: np.ndarray, scales_S: np.ndarray, starts_S: np.ndarray, *, step: int
    ) -> np.ndarray:
        histogram_P2 = np.zeros((LEVEL_BINS, 2))
        per_unit = np.float32(LEVEL_BINS_PER_UNIT)
        compiled.level_histogram(delta_N, profile_N, scales_S, starts_S, step, per_unit, histogram_P2)
        return histogram_P2

    def encode(
        self,
        delta_N: np.ndarray,
        profile_N: np.ndarray,
        scales_S: np.ndarray,
        starts_S: np.ndarray,
        levels_Q: np.ndarray,
        *,
        bits: int,
    ) -> np.ndarray:
        planes_KB = np.empty((bits, (delta_N.size + 7) // 8), np.uint8)
        compiled.encode(delta_N, profile_N, scales_S, starts_S, (levels_Q[1:] + levels_Q[:-1]) / 2, planes_KB)
        return planes_KB

    def decode(
        self,
        planes_KB: np.ndarray,
        profile_N: np.ndarray,
        scales_S: np.ndarray,
        levels_Q: np.ndarray,
        starts_S: np.ndarray,
    ) -> np.ndarray:
        delta_N = np.empty(profile_N.size, np.float32)
        compiled.decode(planes_KB, profile_N, scales_S, levels_Q, starts_S, delta_N)
        return delta_N

    def add_to_profile(self, sum_N: np.ndarray, delta_N: np.ndarray, means_S: np.ndarray, starts_S: np.ndarray) -> None:
        compiled.add_to_profile(delta_N, means_S, starts_S, sum_N)

    def _patterns(self, planes_TB: np.ndarray, last_flip_N: np.ndarray | None, sessions_T: np.ndarray) -> np.ndarray:
        """Patterns of a chunk without the bits that were lost, uint8 [G, 8 B], in this thread's buffer."""
        shape = ((planes_TB.shape[0] + 7) // 8, planes_TB.shape[1])
        needed = shape[0] * shape[1]
        buffer: np.ndarray | None = getattr(self._buffers, "words", None)
        if buffer is None or buffer.size < needed:
            buffer = self._buffers.words = np.empty(needed, np.uint64)
        patterns_GB = buffer[:needed].reshape(shape)
        compiled.patterns(planes_TB, patterns_GB)
        patterns_GN = patterns_GB.view(np.uint8)
        if last_flip_N is not None and sessions_T.size:
            compiled.drop_lost_bits(
                patterns_GN, last_flip_N, _valid(last_flip_N.dtype.name, tuple(sessions_T.tolist()))
            )
        return patterns_GN


@lru_cache(maxsize=4)
def _valid(flip_dtype: str, sessions: tuple[int, ...]) -> np.ndarray:
    """uint8 [G, F], one bit per task of a group: whether its plane holds where the last flip was in session f."""
    flips_F = np.arange(np.iinfo(flip_dtype).max + 1)
    return np.packbits(flips_F <= np.array(sessions)[:, None], axis=0, bitorder="little")
