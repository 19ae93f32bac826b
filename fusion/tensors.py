"""safetensors files, read and written in pieces of any size, and a check of layouts.

A ViT-L/14 in fp32 is 1.7 GB. Nothing here holds more than the current piece, so fusing a thousand tasks needs no more
memory than fusing two. The safetensors library checks a file's header before anything is read; nothing is unpickled.
torch is imported only when a torch tensor is requested: fusing needs none, and importing torch takes longer than fusing
a small model.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError, safe_open

from fusion.disk import writing
from fusion.errors import StateDictError

if TYPE_CHECKING:
    import torch

_BFLOAT16 = np.dtype("<u2")
"""numpy has no bfloat16. Values are read as their 16 bits, which are the upper half of a float32's."""

_NUMPY_DTYPES: dict[str, np.dtype[Any]] = {
    "BF16": _BFLOAT16,
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
_FLOAT_DTYPES = frozenset({"F64", "F32", "F16", "BF16"})
_BUFFER_NAMES = frozenset({"running_mean", "running_var", "num_batches_tracked"})


@dataclass(frozen=True)
class TensorSpec:
    """dtype (safetensors' name for it, such as `F32`) and shape of one tensor."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.elements * _NUMPY_DTYPES[self.dtype].itemsize

    @property
    def num_rows(self) -> int:
        """Size of the first dimension; 1 for vectors, scalars and tensors without elements."""
        return int(self.shape[0]) if len(self.shape) > 1 and 0 not in self.shape else 1


def is_fused(name: str, spec: TensorSpec) -> bool:
    """Whether a tensor belongs to the task vector: it is floating point, and not a BatchNorm statistic.

    A tensor that is not fused (a buffer) is kept with the trigger as it is, if it differs from the base's.
    """
    return spec.dtype in _FLOAT_DTYPES and name.rsplit(".", 1)[-1] not in _BUFFER_NAMES


class TensorFile:
    """A safetensors file. `label` is the name that error messages use (default: its path).

    Raises `StateDictError` when the file is missing, truncated, or not safetensors.
    """

    def __init__(self, path: Path, *, label: str | None = None) -> None:
        self.path = path
        self.label = label or str(path)
        if path.is_dir():
            raise StateDictError(f"{self.label} is a folder: name the .safetensors file in it")
        if not path.is_file():
            raise StateDictError(f"{self.label}: no such file")
        try:
            with safe_open(str(path), framework="np") as file:  # the library's check of the header and the length
                self.metadata: dict[str, str] = dict(file.metadata() or {})
            self._fd = os.open(path, os.O_RDONLY)
        except (SafetensorError, OSError) as error:
            raise StateDictError(
                f"{self.label}: not a complete safetensors file ({error}). condu reads safetensors only: a PyTorch "
                "pickle (.pt, .pth, .bin) must be converted first, and a truncated file copied again"
            ) from error
        weakref.finalize(self, os.close, self._fd)
        header_bytes = int.from_bytes(os.pread(self._fd, 8, 0), "little")
        header = json.loads(os.pread(self._fd, header_bytes, 8))
        header.pop("__metadata__", None)
        self.specs: dict[str, TensorSpec] = {}
        self._offsets: dict[str, int] = {}
        for name in sorted(header):
            self.specs[name] = TensorSpec(header[name]["dtype"], tuple(header[name]["shape"]))
            self._offsets[name] = 8 + header_bytes + header[name]["data_offsets"][0]
        if foreign := sorted({spec.dtype for spec in self.specs.values()} - set(_NUMPY_DTYPES)):
            raise StateDictError(
                f"{self.label}: has tensors of dtype {', '.join(foreign)}, which condu does not support: convert them "
                "to float32, float16 or bfloat16"
            )

    def __contains__(self, name: str) -> bool:
        return name in self.specs

    def read_into(self, name: str, start: int, values_N: np.ndarray) -> None:
        """Fill an array with the elements from `start` on, flat. Its dtype is the tensor's (uint16 for bfloat16)."""
        dtype = _NUMPY_DTYPES[self.specs[name].dtype]
        assert values_N.dtype == dtype, f"{name}: {values_N.dtype} for {dtype}"
        view = memoryview(values_N.view(np.uint8))  # type: ignore[arg-type]
        offset = self._offsets[name] + start * dtype.itemsize
        while view:
            count = os.preadv(self._fd, [view[: 1 << 30]], offset)
            if count == 0:
                raise StateDictError(
                    f"{self.label}: tensor {name!r} ends early: the file was truncated while it was read"
                )
            view, offset = view[count:], offset + count

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Elements [start, stop), flat, a new array of the tensor's dtype (uint16 for bfloat16)."""
        spec = self.specs[name]
        values_N = np.empty((spec.elements if stop is None else stop) - start, _NUMPY_DTYPES[spec.dtype])
        self.read_into(name, start, values_N)
        return values_N

    def read_float32(self, name: str, start: int, values_N: np.ndarray) -> None:
        """Fill a float32 array with the elements of a floating-point tensor from `start` on, converted if necessary."""
        dtype = self.specs[name].dtype
        if dtype == "F32":
            self.read_into(name, start, values_N)
            return
        found_N = self.read(name, start, start + values_N.size)
        if dtype == "BF16":
            np.left_shift(found_N, 16, out=values_N.view(np.uint32), dtype=np.uint32)
        else:
            values_N[:] = found_N

    def array(self, name: str) -> np.ndarray:
        """One tensor as a new numpy array of the same dtype and shape (uint16 for bfloat16)."""
        return self.read(name).reshape(self.specs[name].shape)

    def float32(self, name: str) -> np.ndarray:
        """One floating-point tensor as a new float32 array of the same shape."""
        values_N = np.empty(self.specs[name].elements, np.float32)
        self.read_float32(name, 0, values_N)
        return values_N.reshape(self.specs[name].shape)

    def tensor(self, name: str) -> torch.Tensor:
        """One tensor as a torch tensor of the same dtype, memory-mapped if alignment allows: clone before writing."""
        tensor: torch.Tensor = self._mapped.get_tensor(name)
        return tensor

    @cached_property
    def _mapped(self) -> Any:
        return safe_open(str(self.path), framework="pt", device="cpu")

    def fused_names(self) -> list[str]:
        """Names of the tensors that a task vector spans, sorted."""
        return [name for name, spec in self.specs.items() if is_fused(name, spec)]

    def buffer_names(self) -> list[str]:
        """Names of the tensors that are copied, never fused, sorted."""
        return [name for name, spec in self.specs.items() if not is_fused(name, spec)]


def check_same_layout(base: TensorFile, expert: TensorFile) -> None:
    """Refuse an expert whose layout does not match the base's.

    Float dtypes may differ (a base in fp16 may have an expert in fp32). Raises `StateDictError`, which names every
    missing, extra or different tensor.
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
            f"{expert.label} does not match the base {base.label}: {shown}. Give the base that it was fine-tuned from, "
            "or a full state dict under the base's own tensor names"
        )


class TensorWriter:
    """Write a safetensors file whose layout is known in advance, tensor by tensor, in any order.

    Tensors are laid out by descending item size, then by name, so that each is aligned for its dtype.
    """

    def __init__(
        self, path: Path, specs: Mapping[str, TensorSpec], *, metadata: Mapping[str, str] | None = None
    ) -> None:
        self.path = path
        self._specs = dict(specs)
        self._left = set(specs)
        order = sorted(specs, key=lambda name: (-_NUMPY_DTYPES[specs[name].dtype].itemsize, name))
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

    def write(self, name: str, values: np.ndarray | torch.Tensor, *, start: int = 0) -> None:
        """Write a tensor, or its elements from `start` on. The dtype must match the layout.

        Threads may write different pieces at once. The caller makes sure that the pieces cover the whole tensor.
        """
        spec = self._specs[name]
        dtype = _NUMPY_DTYPES[spec.dtype]
        if not isinstance(values, np.ndarray):
            values = as_array(values)
        assert values.dtype == dtype, f"{name}: {values.dtype}, the layout has {spec.dtype}"
        assert start + values.size <= spec.elements, f"{name}: {start} + {values.size} of {spec.elements} elements"
        data = np.ascontiguousarray(values).reshape(-1).view(np.uint8).data
        with writing(self.path):
            _write_at(self._fd, data, self._data_start + self._offsets[name] + start * dtype.itemsize)
        self._left.discard(name)

    def finish(self) -> None:
        """Close the file. Every tensor of the layout must have been written."""
        self.close()
        assert not self._left, f"tensors not written: {sorted(self._left)}"

    def close(self) -> None:
        """Close the file as it is. Does nothing if it is closed already."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    def abandon(self) -> None:
        """Close and remove the file."""
        self.close()
        self.path.unlink(missing_ok=True)


def write_tensors(
    path: Path, tensors: Mapping[str, torch.Tensor], *, metadata: Mapping[str, str] | None = None
) -> None:
    """Write a dict of tensors that are already in memory."""
    writer = TensorWriter(path, {name: spec_of(tensor) for name, tensor in tensors.items()}, metadata=metadata)
    for name, tensor in tensors.items():
        writer.write(name, tensor)
    writer.finish()


def as_array(tensor: torch.Tensor) -> np.ndarray:
    """A torch tensor as a flat numpy array (uint16 for bfloat16)."""
    import torch

    dtype = _NUMPY_DTYPES[spec_of(tensor).dtype]
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().view(dtype)


def spec_of(tensor: torch.Tensor) -> TensorSpec:
    """The safetensors dtype and shape of a torch tensor."""
    return TensorSpec(_TORCH_NAMES[str(tensor.dtype)], tuple(tensor.shape))


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file, read in pieces."""
    with path.open("rb", buffering=0) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_at(fd: int, data: Iterable[int] | bytes | memoryview, offset: int) -> None:
    view = memoryview(data).cast("B") if not isinstance(data, bytes) else memoryview(data)  # type: ignore[arg-type]
    while view:
        written = os.pwrite(fd, view[: 1 << 30], offset)
        view, offset = view[written:], offset + written


_TORCH_NAMES = {
    "torch.float64": "F64",
    "torch.float32": "F32",
    "torch.float16": "F16",
    "torch.bfloat16": "BF16",
    "torch.int64": "I64",
    "torch.int32": "I32",
    "torch.int16": "I16",
    "torch.int8": "I8",
    "torch.uint8": "U8",
    "torch.bool": "BOOL",
}
