"""The few operations of linear algebra that encoding takes, on the CPU (numpy's BLAS) or on a device (torch).

Arrays stay where they are between operations; `up` and `down` move them. torch is imported only for a device.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

_RIDGE = 1e-12


class Algebra(Protocol):
    """Float32 matrices on one device."""

    def up(self, values: np.ndarray) -> Any:
        """An array of the device."""
        ...

    def down(self, values: Any) -> np.ndarray:
        """A numpy array of it."""
        ...

    def rounded(self, values: Any) -> Any:
        """To the nearest integers, ties to even."""
        ...

    def eigh(self, symmetric: Any) -> tuple[np.ndarray, Any]:
        """Eigenvalues in descending order, float64 on the CPU, and eigenvectors as columns on the device."""
        ...

    def orthonormal(self, values: Any) -> Any:
        """An orthonormal basis [R, K] of the columns of [R, K], K <= R.

        From their Gram matrix in float64, which is faster than Householder's way and as good as float32 can tell.
        """
        ...

    def product(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """left @ right, computed on the device, in the arrays' own dtype."""
        ...


class CpuAlgebra:
    """With numpy."""

    def up(self, values: np.ndarray) -> Any:
        return values

    def down(self, values: Any) -> np.ndarray:
        found: np.ndarray = values
        return found

    def rounded(self, values: Any) -> Any:
        return np.rint(values)

    def eigh(self, symmetric: Any) -> tuple[np.ndarray, Any]:
        values, vectors = np.linalg.eigh(symmetric)
        return values[::-1].astype(np.float64), vectors[:, ::-1]

    def orthonormal(self, values: Any) -> Any:
        wide = values.astype(np.float64)
        lower = np.linalg.cholesky(_safe(wide.T @ wide))
        return (wide @ np.linalg.inv(lower).T).astype(np.float32)

    def product(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        found: np.ndarray = left @ right
        return found


class DeviceAlgebra:
    """With torch, in full float32: TF32 keeps ten bits of a mantissa, and what must be exact would not be."""

    def __init__(self, device: str) -> None:
        import torch

        self._torch = torch
        self._device = torch.device(device)

    def up(self, values: np.ndarray) -> Any:
        return self._torch.from_numpy(np.ascontiguousarray(values)).to(self._device)

    def down(self, values: Any) -> np.ndarray:
        found: np.ndarray = values.cpu().numpy()
        return found

    def rounded(self, values: Any) -> Any:
        return self._torch.round(values)

    def eigh(self, symmetric: Any) -> tuple[np.ndarray, Any]:
        values, vectors = self._torch.linalg.eigh(symmetric)
        return self.down(values)[::-1].astype(np.float64), self._torch.flip(vectors, (1,))

    def orthonormal(self, values: Any) -> Any:
        wide = values.double()
        lower = np.linalg.cholesky(_safe((wide.T @ wide).cpu().numpy()))
        return (wide @ self._torch.from_numpy(np.linalg.inv(lower).T).to(wide)).float()

    def product(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        allowed = self._torch.backends.cuda.matmul.allow_tf32
        self._torch.backends.cuda.matmul.allow_tf32 = False
        try:
            return self.down(self.up(left) @ self.up(right))
        finally:
            self._torch.backends.cuda.matmul.allow_tf32 = allowed


def _safe(gram: np.ndarray) -> np.ndarray:
    """A Gram matrix that has a Cholesky factor, also where columns are equal or 0."""
    return gram + (_RIDGE * gram.diagonal().mean() + np.finfo(np.float64).tiny) * np.eye(len(gram))


def open_algebra(device: str) -> Algebra:
    """On `cpu` numpy's, else torch's on that device."""
    return CpuAlgebra() if device == "cpu" else DeviceAlgebra(device)
