"""The kernels in torch, for CUDA and any other torch device: chunks are copied to the device, results come back.

Every operation is a torch kernel of its own, so nothing is contracted into fused multiply-adds, and masks, tau and
planes equal those of the compiled kernels bit for bit. Tests compare the two on torch's CPU device.

Suffixes: N elements of a chunk, B = ceil(N / 8) bytes of a plane, T tasks, S segments, K planes, Q levels, P bins.
"""

from __future__ import annotations

import numpy as np
import torch

from fusion.kernels import LEVEL_BINS, LEVEL_BINS_PER_UNIT, StateDtype

_GROUP = 8
_DTYPES: dict[StateDtype, torch.dtype] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


class DeviceKernels:
    """`Kernels` in torch, on one device."""

    def __init__(self, device: str) -> None:
        self._device = torch.device(device)

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
        tau, delta, flips = self._up(tau_N), self._up(delta_N), self._up(last_flip_N.astype(np.int32))
        segment = self._segments(starts_S)
        scales = self._up(scales_ST)
        total, group, largest = torch.zeros_like(tau), torch.zeros_like(tau), torch.zeros_like(tau)
        for t, plane_B in enumerate(planes_TB):
            held = self._unpacked(plane_B, tau.numel()) & (flips <= int(sessions_T[t]))
            scale = torch.where(held, scales[:, t][segment], 0.0)
            group = group + scale
            largest = torch.maximum(largest, scale)
            if (t + 1) % _GROUP == 0 or t + 1 == len(planes_TB):
                total, group = total + group, torch.zeros_like(tau)
        up = tau * total + delta > 0
        kept = torch.where(up, tau > 0, tau < 0)
        new = torch.where(up, delta > 0, delta < 0)
        size = torch.maximum(torch.where(kept, tau.abs() * largest, 0.0), torch.where(new, delta.abs(), 0.0))
        exact = torch.where(up, size, -size)
        fused = _rounded(exact, dtype)
        same = ((fused > 0) & (tau > 0)) | ((fused < 0) & (tau < 0))
        columns = [
            self._segment_sums(fused.abs(), kept & self._unpacked(plane_B, tau.numel()) & (flips <= int(at)), starts_S)
            for plane_B, at in zip(planes_TB, sessions_T, strict=True)
        ]
        columns.append(self._segment_sums(fused.abs(), new, starts_S))
        tau_N[:] = fused.cpu().numpy()
        last_flip_N[:] = torch.where(same, flips, session).cpu().numpy()
        return self._packed(new), np.stack(columns, axis=1), self.sum_abs(delta_N, starts_S), _squares(exact, fused)

    def masked_sums(
        self,
        tau_N: np.ndarray,
        last_flip_N: np.ndarray | None,
        planes_TB: np.ndarray,
        sessions_T: np.ndarray,
        starts_S: np.ndarray,
    ) -> np.ndarray:
        size = self._up(tau_N).abs()
        columns = [
            self._segment_sums(size, self._mask(plane_B, last_flip_N, int(at), size.numel()), starts_S)
            for plane_B, at in zip(planes_TB, sessions_T, strict=True)
        ]
        return np.stack(columns, axis=1) if columns else np.zeros((starts_S.size - 1, 0))

    def unify_all(
        self, deltas_TN: np.ndarray, starts_S: np.ndarray, *, dtype: StateDtype
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        deltas = [self._up(delta_N) for delta_N in deltas_TN]
        total = torch.zeros_like(deltas[0])
        for delta in deltas:
            total = total + delta
        up = total > 0
        size = torch.zeros_like(total)
        masks = []
        for delta in deltas:
            agreed = torch.where(up, delta, -delta)
            masks.append(agreed > 0)
            size = torch.where(agreed > size, agreed, size)
        exact = torch.where(up, size, -size)
        tau = _rounded(exact, dtype)
        masked_ST = np.stack([self._segment_sums(tau.abs(), mask, starts_S) for mask in masks], axis=1)
        norms_ST = np.stack([self.sum_abs(delta_N, starts_S) for delta_N in deltas_TN], axis=1)
        planes_TB = np.stack([self._packed(mask) for mask in masks])
        return tau.cpu().numpy(), planes_TB, masked_ST, norms_ST, _squares(exact, tau)

    def decouple(
        self,
        tau_N: np.ndarray,
        last_flip_N: np.ndarray | None,
        plane_B: np.ndarray,
        session: int,
        scales_S: np.ndarray,
        starts_S: np.ndarray,
    ) -> np.ndarray:
        mask = self._mask(plane_B, last_flip_N, session, tau_N.size)
        delta = self._up(scales_S)[self._segments(starts_S)] * self._up(tau_N)
        return torch.where(mask, delta, 0.0).cpu().numpy()

    def sum_abs(self, values_N: np.ndarray, starts_S: np.ndarray) -> np.ndarray:
        return self._segment_sums(self._up(values_N).abs(), None, starts_S)

    def level_histogram(
        self, delta_N: np.ndarray, profile_N: np.ndarray, scales_S: np.ndarray, starts_S: np.ndarray, *, step: int
    ) -> np.ndarray:
        expected = self._expected(profile_N, scales_S, starts_S)[::step]
        ratio = self._up(delta_N).abs()[::step] * (1.0 / expected)
        used = expected.double().square() > 0
        expected, ratio = expected[used].double(), ratio[used]
        position = ratio * LEVEL_BINS_PER_UNIT
        bins = torch.where(position < LEVEL_BINS - 1, position, LEVEL_BINS - 1).long()
        weight = expected * expected
        histogram_P2 = torch.zeros((LEVEL_BINS, 2), dtype=torch.float64, device=self._device)
        histogram_P2.index_add_(0, bins, torch.stack([weight, weight * ratio.double()], dim=1))
        return histogram_P2.cpu().numpy()

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
        planes = [self._packed(self._up(delta_N) > 0)]
        if bits > 1:
            expected, size = self._expected(profile_N, scales_S, starts_S), self._up(delta_N).abs()
            level = torch.zeros_like(size, dtype=torch.int32)
            for border in ((levels_Q[1:] + levels_Q[:-1]) / 2).tolist():
                level += size > border * expected
            level = torch.where(self._up(scales_S)[self._segments(starts_S)] > 0, level, 0)
            planes += [self._packed((level >> k & 1).bool()) for k in range(bits - 1)]
        return np.stack(planes)

    def decode(
        self,
        planes_KB: np.ndarray,
        profile_N: np.ndarray,
        scales_S: np.ndarray,
        levels_Q: np.ndarray,
        starts_S: np.ndarray,
    ) -> np.ndarray:
        num = profile_N.size
        size = self._up(profile_N) * self._up(scales_S)[self._segments(starts_S)]
        if len(planes_KB) > 1:
            level = torch.zeros(num, dtype=torch.long, device=self._device)
            for k, plane_B in enumerate(planes_KB[1:]):
                level |= self._unpacked(plane_B, num).long() << k
            size = size * self._up(levels_Q)[level]
        return torch.where(self._unpacked(planes_KB[0], num), size, -size).cpu().numpy()

    def add_to_profile(self, sum_N: np.ndarray, delta_N: np.ndarray, means_S: np.ndarray, starts_S: np.ndarray) -> None:
        means = self._up(means_S)
        inverse = torch.where(means > 0, 1.0 / means, 0.0)[self._segments(starts_S)]
        sum_N[:] = (self._up(sum_N) + self._up(delta_N).abs() * inverse).cpu().numpy()

    def _up(self, values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.array(values)).to(self._device)

    def _segments(self, starts_S: np.ndarray) -> torch.Tensor:
        """Each element's segment, int64 [N]."""
        lengths = self._up(np.diff(starts_S))
        return torch.repeat_interleave(torch.arange(lengths.numel(), device=self._device), lengths)

    def _segment_sums(self, values: torch.Tensor, mask: torch.Tensor | None, starts_S: np.ndarray) -> np.ndarray:
        """Sums of the values where the mask is set, float64 [S]."""
        values = values.double() if mask is None else torch.where(mask, values.double(), 0.0)
        sums = torch.zeros(starts_S.size - 1, dtype=torch.float64, device=self._device)
        sums.index_add_(0, self._segments(starts_S), values)
        return sums.cpu().numpy()

    def _mask(self, plane_B: np.ndarray, last_flip_N: np.ndarray | None, session: int, num: int) -> torch.Tensor:
        mask = self._unpacked(plane_B, num)
        return mask if last_flip_N is None else mask & (self._up(last_flip_N.astype(np.int32)) <= session)

    def _unpacked(self, plane_B: np.ndarray, num: int) -> torch.Tensor:
        bits = torch.arange(8, dtype=torch.uint8, device=self._device)
        return (self._up(plane_B)[:, None] >> bits & 1).reshape(-1)[:num].bool()

    def _packed(self, bits_N: torch.Tensor) -> np.ndarray:
        weights = 1 << torch.arange(8, device=self._device)
        padded = torch.nn.functional.pad(bits_N.to(torch.int64), (0, -bits_N.numel() % 8))
        return (padded.reshape(-1, 8) * weights).sum(1).to(torch.uint8).cpu().numpy()

    def _expected(self, profile_N: np.ndarray, scales_S: np.ndarray, starts_S: np.ndarray) -> torch.Tensor:
        """mu g, float32 [N]."""
        return self._up(scales_S)[self._segments(starts_S)] * self._up(profile_N)


def _rounded(values: torch.Tensor, dtype: StateDtype) -> torch.Tensor:
    if dtype == "float32":
        return values
    limit = torch.finfo(_DTYPES[dtype]).max
    return values.clamp(-limit, limit).to(_DTYPES[dtype]).float()


def _squares(exact: torch.Tensor, rounded: torch.Tensor) -> np.ndarray:
    """Sums of the squared errors of rounding and of the squares before it, float64 [2]; zeros without rounding."""
    if exact is rounded:
        return np.zeros(2)
    error = rounded.double() - exact.double()
    return torch.stack([error.square().sum(), exact.double().square().sum()]).cpu().numpy()
