"""Which files a path means: one safetensors file, the shards of an index, or a folder that holds either.

Nothing is read but headers. A tensor is read from its own file when it is asked for.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from fusion.checkpoints.pickles import SUFFIXES, is_pickle, pickle_refused
from fusion.errors import StateDictError
from fusion.tensors import TensorFile, TensorSpec

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
_INDEX = ".safetensors.index.json"
_SHOWN = 4


@dataclass(frozen=True)
class Checkpoint:
    """Tensors by name, in one file or in several.

    Attributes:
        label: how messages call it: the path as the user wrote it.
        files: the file of every tensor.
    """

    label: str
    files: dict[str, TensorFile]

    @cached_property
    def specs(self) -> dict[str, TensorSpec]:
        """Sorted by name."""
        return {name: self.files[name].specs[name] for name in sorted(self.files)}

    @property
    def num_files(self) -> int:
        return len({file.path for file in self.files.values()})

    def float32(self, name: str) -> np.ndarray:
        """One floating-point tensor as a new float32 array of its shape."""
        return self.files[name].float32(name)

    def array(self, name: str) -> np.ndarray:
        """One tensor as it is (uint16 for bfloat16)."""
        return self.files[name].array(name)


def adapter_folder(path: Path) -> Path | None:
    """The folder of a PEFT adapter that a path means: the folder itself, or either of its two files."""
    folder = path.parent if path.name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS) else path
    return folder if (folder / ADAPTER_CONFIG).is_file() else None


def open_checkpoint(path: Path) -> Checkpoint:
    """The tensors that a path means. Raises `StateDictError`: no such file, a pickle, a shard that is missing, …"""
    if path.is_dir():
        path = _in_folder(path)
    if not path.is_file():
        raise StateDictError(f"{path}: no such file")
    if path.suffix == ".json":
        return _sharded(path)
    file = _open(path)
    return Checkpoint(file.label, dict.fromkeys(file.specs, file))


def _open(path: Path) -> TensorFile:
    if path.suffix.lower() in SUFFIXES:
        raise pickle_refused(path)
    try:
        return TensorFile(path)
    except StateDictError:
        if is_pickle(path):
            raise pickle_refused(path) from None
        raise


def _in_folder(folder: Path) -> Path:
    """The one index, else the one safetensors file, of a folder."""
    there = sorted(folder.iterdir())
    indexes = [path for path in there if path.name.endswith(_INDEX)]
    files = [path for path in there if path.suffix == ".safetensors"]
    found = indexes or files
    if len(found) == 1:
        return found[0]
    if not found:
        for path in there:
            if path.suffix.lower() in SUFFIXES:
                raise pickle_refused(path)
    names = ", ".join(path.name for path in found[:_SHOWN]) + (" …" if len(found) > _SHOWN else "")
    raise StateDictError(
        f"{folder} is a folder: name the .safetensors file in it ({f'it has {names}' if found else 'it has none'})"
    )


def _sharded(index: Path) -> Checkpoint:
    """The shards of a `*.safetensors.index.json`."""
    try:
        document: Any = json.loads(index.read_text())
        where = {str(name): str(file) for name, file in document["weight_map"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StateDictError(
            f"{index} is not the index of a sharded checkpoint ({error!r}): it needs `weight_map`, tensors to files"
        ) from error
    if outside := sorted({file for file in where.values() if Path(file).name != file}):
        raise StateDictError(f"{index} names {outside[0]!r}: shards have to lie beside their index")
    if missing := sorted({file for file in where.values() if not (index.parent / file).is_file()}):
        more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        raise StateDictError(
            f"{index} names shards that are not beside it: {', '.join(missing[:_SHOWN])}{more}. Copy all of them"
        )
    opened = {file: _open(index.parent / file) for file in sorted(set(where.values()))}
    for name, file in where.items():
        if name not in opened[file]:
            raise StateDictError(f"{index} says that {name!r} is in {file}, but it is not: copy index and shards again")
    return Checkpoint(str(index), {name: opened[file] for name, file in where.items()})
