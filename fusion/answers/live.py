"""Experts applied to the base as they are, without building their models: one forward for images of many tasks.

Where a mode keeps few components of a matrix, an expert need not be built: the base's own products are computed once
for all images of a batch, and each image's expert adds its components and its small tensors. An expert in memory has
the size of its components, megabytes, and is ready once its trigger is read.

For the image side of open_clip's `VisionTransformer`, and for text sides with a causal mask. Others are rebuilt.

Letters: B images, N texts, L tokens, D dimensions of the embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer, text_global_pool
from torch import nn
from torch.nn import functional as F

from fusion.answers.clip import Clip, TextEncoder
from fusion.answers.live_layers import Factors, LiveSide, Mix, Rows, with_live_parts
from fusion.answers.short_texts import shortened, text_tower
from fusion.checkpoints.names import of_images
from fusion.decouple import DecoupledExpert
from fusion.modes import ComponentParts, PartsDecoder
from fusion.task_vectors import BUFFER

_POSITIONS, _FIRST, _TOKENS = "positional_embedding", "class_embedding", "token_embedding.weight"


def image_side(expert: DecoupledExpert) -> LiveSide | None:
    """The image side of an expert, by the names of `visual`'s tensors; None if it has to be rebuilt."""
    return _side(expert, of_images, "visual.")


def text_side(expert: DecoupledExpert, clip: Clip) -> LiveSide | None:
    """The text side, by the names of the text tower's tensors; None if it has to be rebuilt."""
    prefix = "" if text_tower(clip.model) is clip.model else "text."
    return _side(expert, lambda name: not of_images(name) and name.startswith(prefix) and name != "logit_scale", prefix)


def _side(expert: DecoupledExpert, wanted: Callable[[str], bool], prefix: str) -> LiveSide | None:
    decoder = expert.decoder
    if not isinstance(decoder, PartsDecoder):
        return None
    if any(wanted(key.removeprefix(BUFFER)) for key in expert.trigger.specs if key.startswith(BUFFER)):
        return None
    factors: dict[str, Factors] = {}
    deltas: dict[str, torch.Tensor] = {}
    tables: dict[str, Rows] = {}
    for name in filter(wanted, expert.bench.specs):
        found, own, shape = decoder.parts(name), name.removeprefix(prefix), expert.bench.specs[name].shape
        if isinstance(found, ComponentParts):
            u, v = torch.from_numpy(found.u), torch.from_numpy(found.v)
            if own == _TOKENS:
                return None
            if own == _POSITIONS:  # added, not multiplied with
                deltas[own] = u.T @ v
            else:
                factors[own] = (u, v)
        elif found is not None:
            rows, values = torch.from_numpy(found.rows), torch.from_numpy(found.values)
            if own == _TOKENS:
                tables[own] = (rows, values)
            elif len(shape) < 2 or own == _POSITIONS:
                whole = torch.zeros(expert.bench.specs[name].num_rows, values.shape[1])
                whole[rows] = values
                deltas[own] = whole.reshape(shape)
            else:  # a row that moved is a component with a single row
                factors[own] = (F.one_hot(rows, shape[0]).float(), values)
    return LiveSide(factors, deltas, tables)


class LiveImages:
    """The image side of a base, which applies an expert of its own to every image. Use `live_images`.

    One thread at a time.
    """

    def __init__(self, clip: Clip) -> None:
        tower: Any = clip.model.visual
        self._clip, self._mix, self._projection = clip, Mix(), tower.proj
        self._positions: torch.Tensor = tower.positional_embedding
        self._tower = with_live_parts(tower, self._mix, "")
        self._tower._parameters["proj"] = None
        del self._tower._parameters[_POSITIONS]

    @torch.inference_mode()
    def image_features(self, pixels: torch.Tensor, owners: Sequence[LiveSide], *, unit: bool = True) -> torch.Tensor:
        """Features, float32 [B, D] on the CPU, of preprocessed pixels [B, 3, H, W], each by its owner.

        Args:
            unit: of length 1; else as the encoder gives them.
        """
        mix = self._mix
        mix.set(owners, self._clip.device)
        positions = mix.delta(_POSITIONS)
        positions = self._positions if positions is None else self._positions + positions
        if (first := mix.delta(_FIRST)) is not None:
            positions = positions.expand(len(pixels), -1, -1).clone()
            positions[:, 0] += first
        self._tower.positional_embedding = positions
        pooled = self._tower(pixels.to(self._clip.device))
        features = _projected(pooled, self._projection, mix, "proj")
        return (F.normalize(features, dim=-1) if unit else features).float().cpu()


class LiveTexts(TextEncoder):
    """The text side of one expert. Use `live_texts`. One thread at a time."""

    def __init__(self, clip: Clip, side: LiveSide) -> None:
        tower = text_tower(clip.model)
        assert tower is not None, "`live_texts` looks for it"
        self._clip, self._tower, self._side, self._mix = clip, tower, side.to(clip.device), Mix()
        self._blocks = with_live_parts(tower.transformer, self._mix, "transformer")
        self._norm = with_live_parts(tower.ln_final, self._mix, "ln_final")

    @torch.inference_mode()
    def text_features(self, texts: Sequence[str], *, batch_size: int = 256, unit: bool = True) -> torch.Tensor:
        tokens = self._clip.tokenizer(list(texts)).to(self._clip.device)
        features = torch.cat([self._encode(shortened(batch)) for batch in tokens.split(batch_size)])
        return (F.normalize(features, dim=-1) if unit else features).float().cpu()

    def _encode(self, tokens: torch.Tensor) -> torch.Tensor:
        tower, mix, (size, length) = self._tower, self._mix, tokens.shape
        mix.set([self._side] * size, self._clip.device)
        x = tower.token_embedding(tokens) + tower.positional_embedding[:length]
        if (table := self._side.tables.get(_TOKENS)) is not None:
            x = x + _looked_up(tokens, table)
        if (positions := mix.delta(_POSITIONS)) is not None:
            x = x + positions[:, :length]
        x = self._norm(self._blocks(x, attn_mask=tower.attn_mask[:length, :length]))
        kind = getattr(tower, "pool_type", None) or tower.text_pool_type
        end = getattr(tower, "eos_id", None) or getattr(tower, "text_eos_id", None)
        pooled = text_global_pool(x, tokens, kind, eos_token_id=end)
        return _projected(pooled, tower.text_projection, mix, "text_projection")


def live_images(clip: Clip) -> LiveImages | None:
    """The live image side of a base; None if it is no `VisionTransformer`, or has parts that are not known here."""
    tower: Any = clip.model.visual
    if not isinstance(tower, VisionTransformer) or tower.proj is None or tower.output_tokens:
        return None
    known = tower.attn_pool is None and _is_known(tower, {_POSITIONS, _FIRST, "proj"}, tower.transformer)
    return LiveImages(clip) if known else None


def live_texts(clip: Clip, expert: DecoupledExpert) -> LiveTexts | None:
    """The live text side of an expert; None if the base's has no causal mask or parts that are not known here."""
    tower = text_tower(clip.model)
    if tower is None or not isinstance(tower.text_projection, torch.Tensor):
        return None
    own = {_POSITIONS, _TOKENS, "text_projection", "logit_scale"}
    side = text_side(expert, clip) if _is_known(tower, own, tower.transformer) else None
    return LiveTexts(clip, side) if side is not None else None


def _is_known(tower: nn.Module, own: set[str], transformer: Any) -> bool:
    """Whether every parameter, beside a tower's `own`, is in a layer that `with_live_parts` replaces."""
    covered = {
        f"{name}.{key}"
        for name, module in tower.named_modules()
        if isinstance(module, nn.Linear | nn.LayerNorm | nn.MultiheadAttention) or name == "conv1"
        for key, _ in module.named_parameters()
    }
    parameters = {name for name, _ in tower.named_parameters() if not of_images(name)}
    blocks = all(type(block) is ResidualAttentionBlock for block in transformer.resblocks)
    return blocks and not parameters - own - covered


def _projected(pooled: torch.Tensor, projection: torch.Tensor, mix: Mix, name: str) -> torch.Tensor:
    """pooled (P + u^T v), [B, D]."""
    features = pooled @ projection
    if (found := mix.factors(name)) is None:
        return features
    u, v = found
    return features + ((pooled[:, None] @ u.mT) @ v)[:, 0]


def _looked_up(tokens: torch.Tensor, table: Rows) -> torch.Tensor:
    """What a table's moved rows add, [N, L, C]."""
    rows, values = table
    if not len(rows):
        return torch.zeros(*tokens.shape, values.shape[1], device=tokens.device)
    places = torch.searchsorted(rows, tokens).clamp(max=len(rows) - 1)
    return values[places] * (rows[places] == tokens)[..., None]
