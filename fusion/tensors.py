"""safetensors files, one tensor at a time: memory-mapped reads, streamed writes, and a check of layouts.

A ViT-L/14 in fp32 is 1.7 GB. Nothing here holds more than the tensor in hand, so fusing a thousand tasks needs no more
memory than fusing two. Reads go through the safetensors library (which checks the header); nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from fusion.disk import writing
from fusion.errors import StateDictError

_NUMPY_DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
_FLOAT_DTYPES = frozenset({"F64", "F32", "F16", "BF16"})
_BUFFER_NAMES = frozenset({"running_mean", "running_var", "num_batches_tracked"})
_HASH_CHUNK_BYTES = 8 << 20


@dataclass(frozen=True)
class TensorSpec:
    """dtype (a safetensors name such as `F32`) and shape of one tensor."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.elements * (2 if self.dtype == "BF16" else _NUMPY_DTYPES[self.dtype].itemsize)


def is_fused(name: str, spec: TensorSpec) -> bool:
    """Whether a tensor belongs to the task vector: floating point, and not a BatchNorm statistic.

    What is not fused (a buffer) travels with the trigger as it is, where it differs from the base's.
    """
    return spec.dtype in _FLOAT_DTYPES and name.rsplit(".", 1)[-1] not in _BUFFER_NAMES


class TensorFile:
    """A safetensors file, memory-mapped. `label` is what error messages call it (default: its path).

    Raises `StateDictError` when the file is missing, truncated, or something else than safetensors.
    """

    def __init__(self, path: Path, *, label: str | None = None) -> None:
        self.path = path
        self.label = label or str(path)
        if path.is_dir():
            raise StateDictError(f"{self.label} is a folder: name the .safetensors file in it")
        if not path.is_file():
            raise StateDictError(f"{self.label}: no such file")
        try:
            self._file = safe_open(str(path), framework="pt", device="cpu")
            self.metadata: dict[str, str] = dict(self._file.metadata() or {})
            self.specs: dict[str, TensorSpec] = {}
            for name in sorted(self._file.keys()):
                view = self._file.get_slice(name)
                self.specs[name] = TensorSpec(view.get_dtype(), tuple(view.get_shape()))
        except (SafetensorError, OSError) as error:
            raise StateDictError(
                f"{self.label}: not a complete safetensors file ({error}). condu reads safetensors only: a PyTorch "
                "pickle (.pt, .pth, .bin) has to be converted first, and a truncated file copied again"
            ) from error

    def __contains__(self, name: str) -> bool:
        return name in self.specs

    def tensor(self, name: str) -> torch.Tensor:
        """One tensor in its own dtype, a read-only view of the file where alignment allows: clone before writing."""
        try:
            tensor: torch.Tensor = self._file.get_tensor(name)
        except SafetensorError as error:
            raise StateDictError(f"{self.label}: tensor {name!r} can't be read ({error})") from error
        return tensor

    def array(self, name: str) -> np.ndarray:
        """One tensor as a numpy array of its own dtype (not bfloat16, which numpy lacks)."""
        return self.tensor(name).numpy()

    def float32(self, name: str) -> np.ndarray:
        """One floating-point tensor as float32, in its own shape."""
        return self.tensor(name).to(torch.float32).numpy()

    def fused_names(self) -> list[str]:
        """Names of the tensors that a task vector spans, sorted."""
        return [name for name, spec in self.specs.items() if is_fused(name, spec)]

    def buffer_names(self) -> list[str]:
        """Names of the tensors that are copied, never fused, sorted."""
        return [name for name, spec in self.specs.items() if not is_fused(name, spec)]


def check_same_layout(base: TensorFile, expert: TensorFile) -> None:
    """Refuse an expert whose tensors are not the base's: every missing, extra or differing one is named at once.

    Float dtypes may differ (a base in fp16 may have an expert in fp32). Raises `StateDictError`.
    """
    problems = [f"{name} is missing" for name in base.specs if name not in expert]
    problems += [f"{name} is not in the base" for name in expert.specs if name not in base]
    for name, spec in base.specs.items():
        if name not in expert:
            continue
        other = expert.specs[name]
        if other.shape != spec.shape:
            problems.append(f"{name} has shape {list(other.shape)}, the base has {list(spec.shape)}")
        elif is_fused(name, spec) != is_fused(name, other):
            problems.append(f"{name} has dtype {other.dtype}, the base has {spec.dtype}")
    if problems:
        shown = "; ".join(problems[:8]) + (f"; and {len(problems) - 8} more" if len(problems) > 8 else "")
        raise StateDictError(
            f"{expert.label} is no expert of base {base.label}: {shown}. Give the base that it was fine-tuned from, "
            "or a full state dict under the base's own tensor names"
        )


def task_vector(base: TensorFile, expert: TensorFile, name: str) -> np.ndarray:
    """One tensor of delta = theta_i - theta_0 in float32, flat. Raises `StateDictError` on NaN or infinity."""
    delta_N = (expert.float32(name) - base.float32(name)).reshape(-1)
    if not np.isfinite(delta_N).all():
        raise StateDictError(
            f"{expert.label}: tensor {name!r} holds NaN or infinite values: its training diverged. "
            "Train it again with a lower learning rate"
        )
    return delta_N


class TensorWriter:
    """Write a safetensors file whose layout is known beforehand, tensor by tensor, in any order.

    Tensors are laid out by falling item size, then by name, so that each is aligned to its own dtype.
    """

    def __init__(
        self, path: Path, specs: Mapping[str, TensorSpec], *, metadata: Mapping[str, str] | None = None
    ) -> None:
        self.path = path
        self._specs = dict(specs)
        self._left = set(specs)
        order = sorted(specs, key=lambda name: (-_item_bytes(specs[name]), name))
        header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
        self._offsets: dict[str, int] = {}
        offset = 0
        for name in order:
            spec = specs[name]
            header[name] = {
                "dtype": spec.dtype,
                "shape": list(spec.shape),
                "data_offsets": [offset, offset + spec.bytes],
            }
            self._offsets[name] = offset
            offset += spec.bytes
        encoded = json.dumps(header, separators=(",", ":")).encode()
        encoded += b" " * (-len(encoded) % 8)
        self._data_start = 8 + len(encoded)
        with writing(path):
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
            try:
                _write_at(self._fd, len(encoded).to_bytes(8, "little") + encoded, 0)
                os.ftruncate(self._fd, self._data_start + offset)
            except BaseException:
                self.abandon()
                raise

    def write(self, name: str, values: np.ndarray | torch.Tensor) -> None:
        """Write one tensor. Its dtype and number of elements must be the announced ones."""
        spec = self._specs[name]
        if isinstance(values, torch.Tensor):
            values = values.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        else:
            assert values.dtype == _NUMPY_DTYPES[spec.dtype], f"{name}: {values.dtype} where {spec.dtype} was announced"
            values = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
        assert values.nbytes == spec.bytes, f"{name}: {values.nbytes} bytes where {spec.bytes} were announced"
        with writing(self.path):
            _write_at(self._fd, values.data, self._data_start + self._offsets[name])
        self._left.discard(name)

    def finish(self) -> None:
        """Close the file. Every announced tensor must have been written."""
        os.close(self._fd)
        assert not self._left, f"tensors announced but not written: {sorted(self._left)}"

    def abandon(self) -> None:
        """Close and remove the file."""
        os.close(self._fd)
        self.path.unlink(missing_ok=True)


def write_tensors(
    path: Path, tensors: Mapping[str, torch.Tensor], *, metadata: Mapping[str, str] | None = None
) -> None:
    """Write a whole dict of tensors that is in memory already."""
    writer = TensorWriter(path, {name: spec_of(tensor) for name, tensor in tensors.items()}, metadata=metadata)
    for name, tensor in tensors.items():
        writer.write(name, tensor)
    writer.finish()


def spec_of(tensor: torch.Tensor) -> TensorSpec:
    """The safetensors dtype and shape of a torch tensor."""
    return TensorSpec(_TORCH_NAMES[tensor.dtype], tuple(tensor.shape))


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file, read in chunks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_HASH_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _item_bytes(spec: TensorSpec) -> int:
    return 2 if spec.dtype == "BF16" else _NUMPY_DTYPES[spec.dtype].itemsize


def _write_at(fd: int, data: Iterable[int] | bytes | memoryview, offset: int) -> None:
    view = memoryview(data).cast("B") if not isinstance(data, bytes) else memoryview(data)  # type: ignore[arg-type]
    while view:
        written = os.pwrite(fd, view[: 1 << 30], offset)
        view, offset = view[written:], offset + written


_TORCH_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
