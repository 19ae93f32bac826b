"""Kernels: the method's arithmetic over one chunk of flat elements, on the CPU (numba) or on a device (torch).

The layers above stream chunks from files to files; kernels only map arrays to arrays. Both implementations give the
same masks, tau and planes bit for bit, and the same scales up to the last digits of a float64 sum.

A chunk's elements belong to **segments**, runs that share a scale: its rows, or the whole chunk. `starts_S` holds where
each segment begins, and last the chunk's length: int64 [S + 1].

Suffixes: N elements of a chunk, B = ceil(N / 8) bytes of a plane, T tasks, S segments, K planes, Q levels, P bins.
"""

from __future__ import annotations

import os
from typing import Literal, Protocol

import numpy as np

from fusion.errors import ConfigError, DiskError

StateDtype = Literal["float32", "float16", "bfloat16"]
"""The dtype in which tau is kept. Arithmetic is always float32; tau is rounded before anything is derived from it."""

LEVEL_BINS = 4096
LEVEL_BINS_PER_UNIT = 256.0
"""The histogram of |delta| / (mu g) that levels are fitted to: bins of 1/256; the last one holds all that is larger."""


class Kernels(Protocol):
    """The operations that the modes are built from. Safe to call from several threads at once."""

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
        """Unify the decoupled old tasks with a new task vector, in closed form. Changes tau and last_flip in place.

        With b_i the old masks: S = sum lambda_i b_i (by groups of eight), L = max lambda_i b_i; s = tau S + delta;
        f = +1 if s > 0 else -1; m_i' = b_i and tau f > 0; m_t = delta f > 0;
        tau' = f max(|tau| L where tau f > 0, |delta| where delta f > 0).

        Args:
            tau_N: float32; becomes tau'.
            last_flip_N: uint8 or uint16, the last session in which tau's sign changed or tau became 0.
            delta_N: the new task vector, float32.
            planes_TB: uint8, the old tasks' planes as they were written.
            sessions_T: the sessions that wrote them.
            scales_ST: lambda_i, float32.
            session: number of this session, from 1.
            dtype: what tau' is rounded to.
        Returns: the new plane, uint8 [B]; sum m'|tau'| for the old tasks and, last, the new one, float64 [S, T + 1];
            sum |delta|, float64 [S], NaN or infinite where delta is; and two sums, float64 [2]: of the squared errors
            of rounding, and of the squares before rounding (zeros for float32).
        """
        ...

    def masked_sums(
        self,
        tau_N: np.ndarray,
        last_flip_N: np.ndarray | None,
        planes_TB: np.ndarray,
        sessions_T: np.ndarray,
        starts_S: np.ndarray,
    ) -> np.ndarray:
        """sum m_i |tau|, float64 [S, T]. Without `last_flip_N` the planes hold as written."""
        ...

    def unify_all(
        self, deltas_TN: np.ndarray, starts_S: np.ndarray, *, dtype: StateDtype
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Unify all task vectors at once.

        f = +1 if sum_i delta_i > 0 else -1; m_i = delta_i f > 0; tau = f max_i m_i |delta_i|.

        Returns: tau, float32 [N]; planes, uint8 [T, B]; sum m_i |tau| and sum |delta_i|, float64 [S, T] each; and the
            two sums about rounding, as from `unify_next`.
        """
        ...

    def decouple(
        self,
        tau_N: np.ndarray,
        last_flip_N: np.ndarray | None,
        plane_B: np.ndarray,
        session: int,
        scales_S: np.ndarray,
        starts_S: np.ndarray,
    ) -> np.ndarray:
        """delta_hat = lambda m tau, float32 [N]."""
        ...

    def sum_abs(self, values_N: np.ndarray, starts_S: np.ndarray) -> np.ndarray:
        """sum |values|, float64 [S]; NaN or infinite where a value is."""
        ...

    def level_histogram(
        self, delta_N: np.ndarray, profile_N: np.ndarray, scales_S: np.ndarray, starts_S: np.ndarray, *, step: int
    ) -> np.ndarray:
        """Histogram of every `step`-th |delta| / (mu g), weighted by (mu g)^2.

        Returns: float64 [P, 2], sums of weight and of weight x ratio.
        """
        ...

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
        """Signs (1 where delta > 0) and the bits of the nearest level's index: planes, uint8 [bits, B]."""
        ...

    def decode(
        self,
        planes_KB: np.ndarray,
        profile_N: np.ndarray,
        scales_S: np.ndarray,
        levels_Q: np.ndarray,
        starts_S: np.ndarray,
    ) -> np.ndarray:
        """delta_hat = +-mu g q, float32 [N]."""
        ...

    def add_to_profile(self, sum_N: np.ndarray, delta_N: np.ndarray, means_S: np.ndarray, starts_S: np.ndarray) -> None:
        """Add |d| / nu to a profile's sum in place; nothing in segments where nu is 0."""
        ...


def open_kernels(device: str = "cpu") -> Kernels:
    """The kernels of a device: numba's on `cpu`, torch's elsewhere (`cuda`, `cuda:1`).

    Raises `ConfigError` for a device that torch does not have.
    """
    if device == "cpu":
        from fusion.kernels.cpu import CpuKernels

        return CpuKernels()
    import torch

    from fusion.kernels.device import DeviceKernels

    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"device {device!r} can't be used ({reason}): use cpu, or cuda on a machine with a GPU"
        ) from error
    return DeviceKernels(device)


def load_kernels(device: str = "cpu") -> None:
    """Load the kernels of a device: the first call costs a process a quarter of a second.

    Raises `DiskError` where they are compiled and can't be kept.
    """
    kernels = open_kernels(device)
    try:
        kernels.sum_abs(np.zeros(1, np.float32), np.array([0, 1]))
    except OSError as error:
        raise DiskError(
            f"the compiled kernels can't be kept ({error}): free space in numba's cache folder, or name one with "
            "NUMBA_CACHE_DIR"
        ) from error


def available_cores() -> int:
    """Number of cores that this process may use: those that Ray reserved for it, else those of its CPU affinity."""
    reserved = os.environ.get("OMP_NUM_THREADS", "")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(int(reserved), cores) if reserved.isdigit() and int(reserved) > 0 else cores
