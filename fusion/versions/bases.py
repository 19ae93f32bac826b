"""Bases: theta_0 as it was given, kept in the store together with the description that rebuilds its model.

`bases/<sha256>.safetensors` holds the weights and `bases/<sha256>.json` the architecture, so a replica needs nothing
but the store. A base without an architecture (a plain state dict) can be fused and exported, but not served.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusion.errors import BaseMismatchError, DamagedBlobError, FormatError
from fusion.store import Store
from fusion.store.blobs import BlobRef, canonical_json, get_plain_json
from fusion.tensors import TensorFile, sha256_file


@dataclass(frozen=True)
class Base:
    """A base: a reference to its weights, and what open_clip needs to build its model.

    Attributes:
        weights: safetensors under `bases/`.
        architecture: its name, such as `ViT-B-16`; None for a plain state dict.
        model_cfg: open_clip's model configuration; None for a plain state dict.
        preprocess_cfg: open_clip's preprocessing (size, mean, std, interpolation, resize mode).
    """

    weights: BlobRef
    architecture: str | None = None
    model_cfg: dict[str, Any] | None = None
    preprocess_cfg: dict[str, Any] | None = None

    @property
    def sha256(self) -> str:
        return self.weights.sha256

    def to_json(self) -> dict[str, Any]:
        return {
            "weights": self.weights.to_json(),
            "architecture": self.architecture,
            "model_cfg": self.model_cfg,
            "preprocess_cfg": self.preprocess_cfg,
        }

    @classmethod
    def from_json(cls, value: Any) -> Base:
        try:
            return cls(
                BlobRef.from_json(value["weights"]), value["architecture"], value["model_cfg"], value["preprocess_cfg"]
            )
        except (KeyError, TypeError) as error:
            raise FormatError(f"not the description of a base: {error}") from error


def put_base(
    store: Store,
    path: Path,
    *,
    architecture: str | None = None,
    model_cfg: dict[str, Any] | None = None,
    preprocess_cfg: dict[str, Any] | None = None,
) -> Base:
    """Keep a base in the store. Does nothing if it is there already.

    Raises `StateDictError` when the file is not a safetensors file, `BaseMismatchError` when the store has the same
    weights with another architecture.
    """
    TensorFile(path)
    sha256 = sha256_file(path)
    weights = BlobRef(f"bases/{sha256}.safetensors", sha256, path.stat().st_size)
    base = Base(weights, architecture, model_cfg, preprocess_cfg)
    if store.head(weights.key) is None:
        store.put_if_absent(weights.key, path)
    key = f"bases/{sha256}.json"
    if not store.put_if_absent(key, canonical_json(base.to_json())):
        kept = get_base(store, sha256)
        if architecture is not None and kept.model_cfg is not None and kept != base:
            raise BaseMismatchError(
                f"{store.url} has base {sha256[:12]}… as {kept.architecture}, but the configuration describes the same "
                f"weights as {architecture} with other settings: use the store's settings, or another store"
            )
        return kept if kept.model_cfg is not None else base
    return base


def get_base(store: Store, sha256: str) -> Base:
    """Read a base's description. Raises `BlobNotFoundError`, `DamagedBlobError`, `FormatError`."""
    key = f"bases/{sha256}.json"
    base = Base.from_json(get_plain_json(store, key))
    if base.sha256 != sha256:
        raise DamagedBlobError(
            f"{store.url}/{key} is damaged: it describes other weights, {base.sha256[:12]}…. Restore it from a backup"
        )
    return base
