"""PEFT LoRA adapters: what they change in the base, read factor by factor and merged in float64.

    W' = W + (alpha / r) B A,      A [r, in], B [out, r]; transposed for embeddings and where `fan_in_fan_out`

Tensors that the adapter holds whole (trained biases, `modules_to_save`) replace the base's. Modules may have Hugging
Face's names or open_clip's. Source: Hu et al. 2022 (arXiv 2106.09685); PEFT's merged weights, which a test compares.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fusion.checkpoints.adapter_config import ELSEWHERE, AdapterConfig, read_adapter_config
from fusion.checkpoints.files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, Checkpoint, open_checkpoint
from fusion.errors import StateDictError

_ROOT = "base_model.model."
_WRAPPED = "base_layer"
"""The segment that PEFT puts in front of an adapted module's own parts, such as an attention's output projection."""
_FACTORS = {"lora_A": "lora_B", "lora_embedding_A": "lora_embedding_B"}
"""A to B. An embedding's are [r, rows] and [columns, r]."""
_ADDED_TWICE = f".{_WRAPPED}.out_proj"
"""Of torch's attention PEFT adds this product twice, in every forward pass and when it merges (0.21.2, which the test
compares). The expert was trained so."""


@dataclass(frozen=True)
class Product:
    """scale x B A, as an addition to one matrix.

    Attributes:
        module: the adapted module's path, without what PEFT adds.
        down, up: names of A and B in the adapter's file.
        scale: alpha / r, or alpha / sqrt(r); twice that where PEFT adds it twice.
        transposed: whether the matrix is [in, out].
    """

    module: str
    down: str
    up: str
    scale: float
    transposed: bool

    def values(self, weights: Checkpoint, shape: tuple[int, ...]) -> np.ndarray:
        """The product, float64, in the shape of the matrix. Raises `StateDictError` where it has another."""
        down, up = weights.float32(self.down).astype(np.float64), weights.float32(self.up).astype(np.float64)
        product = self.scale * (up.reshape(up.shape[0], -1) @ down.reshape(down.shape[0], -1))
        if self.transposed:
            product = product.T
        if product.size != int(np.prod(shape)) or product.shape[0] != shape[0]:
            raise StateDictError(
                f"{weights.label}: B A of {self.module} is {list(product.shape)}, the base has {list(shape)} there: it "
                "is an adapter of another base"
            )
        return product.reshape(shape)


@dataclass(frozen=True)
class Adapter:
    """An adapter, opened.

    Attributes:
        label: how messages call it.
        config: how it is merged.
        weights: its file.
        products: what is added to matrices.
        whole: module paths with a tensor's own name, to the name in the file, of what is replaced.
    """

    label: str
    config: AdapterConfig
    weights: Checkpoint
    products: tuple[Product, ...]
    whole: dict[str, str]


def open_adapter(folder: Path) -> Adapter:
    """Raises `StateDictError`: an adapter that can't be merged exactly, or whose file is incomplete."""
    config = read_adapter_config(folder / ADAPTER_CONFIG)
    weights = _weights(folder)
    products, whole = [], {}
    for name in weights.specs:
        module, factor, rest = _split(name)
        if factor in _FACTORS and "bias" not in rest:
            products.append(_product(config, weights, name, module, factor))
        elif factor is None:
            whole[_unwrapped(module)] = name
        elif factor not in _FACTORS.values() or "bias" in rest:
            raise StateDictError(
                f"{weights.label}: {name!r} is no factor of plain LoRA (a magnitude of DoRA, a bias of B, …). "
                f"{ELSEWHERE}"
            )
    if not products and not whole:
        raise StateDictError(f"{weights.label} holds no tensor: it is the adapter of a training that has not begun")
    return Adapter(str(folder), config, weights, tuple(products), whole)


def _weights(folder: Path) -> Checkpoint:
    path = folder / ADAPTER_WEIGHTS
    return open_checkpoint(path if path.is_file() else folder)  # else sharded, renamed, or a pickle


def _product(config: AdapterConfig, weights: Checkpoint, down: str, module: str, factor: str) -> Product:
    before, _, after = down.rpartition(factor)
    up = before + _FACTORS[factor] + after
    if up not in weights.files:
        raise StateDictError(f"{weights.label}: has {down!r} without {up!r}: the file is incomplete")
    adapted = module.partition(f".{_WRAPPED}.")[0]  # parts of a wrapped module have its rank and alpha
    rank = weights.specs[down].shape[0]
    if rank != config.rank_of(adapted):
        raise StateDictError(
            f"{weights.label}: {down!r} has rank {rank}, {config.label} says {config.rank_of(adapted)}: they do not "
            "belong together"
        )
    transposed = factor == "lora_embedding_A" or config.fan_in_fan_out
    scale = config.scale_of(adapted) * (2 if module.endswith(_ADDED_TWICE) else 1)
    return Product(_unwrapped(module), down, up, scale, transposed)


def _split(name: str) -> tuple[str, str | None, list[str]]:
    """Module, factor and what follows it: `x.q.lora_A.weight`, also `x.q.lora_A.ADAPTER.weight`. No factor: a tensor
    that the file holds whole, under its own name."""
    segments = name.removeprefix(_ROOT).split(".")
    at = next((number for number, segment in enumerate(segments) if segment.startswith("lora_")), None)
    if at is None:
        return ".".join(segments), None, []
    return ".".join(segments[:at]), segments[at], segments[at + 1 :]


def _unwrapped(path: str) -> str:
    return ".".join(segment for segment in path.split(".") if segment != _WRAPPED)
