"""The text side of one expert, applied to the base's as it is.

Letters: N texts, L tokens, C columns of a table, D dimensions of the embedding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from open_clip.transformer import text_global_pool
from torch.nn import functional as F

from fusion.answers.clip import Clip, TextEncoder
from fusion.answers.live.layers import is_known, projected, with_live_parts
from fusion.answers.live.mix import Mix
from fusion.answers.live.sides import POSITIONS, TOKENS, LiveSide, Rows, text_side
from fusion.answers.short_texts import shortened, text_tower
from fusion.decouple import DecoupledExpert


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
        if (table := self._side.tables.get(TOKENS)) is not None:
            x = x + _looked_up(tokens, table)
        if (positions := mix.delta(POSITIONS)) is not None:
            x = x + positions[:, :length]
        x = self._norm(self._blocks(x, attn_mask=tower.attn_mask[:length, :length]))
        kind = getattr(tower, "pool_type", None) or tower.text_pool_type
        end = getattr(tower, "eos_id", None) or getattr(tower, "text_eos_id", None)
        pooled = text_global_pool(x, tokens, kind, eos_token_id=end)
        return projected(pooled, tower.text_projection, mix, "text_projection")


def live_texts(clip: Clip, expert: DecoupledExpert) -> LiveTexts | None:
    """The live text side of an expert; None if the base's has no causal mask or parts that are not known here."""
    tower = text_tower(clip.model)
    if tower is None or not isinstance(tower.text_projection, torch.Tensor):
        return None
    own = {POSITIONS, TOKENS, "text_projection", "logit_scale"}
    side = text_side(expert, clip) if is_known(tower, own, tower.transformer) else None
    return LiveTexts(clip, side) if side is not None else None


def _looked_up(tokens: torch.Tensor, table: Rows) -> torch.Tensor:
    """What a table's moved rows add, [N, L, C]."""
    rows, values = table
    if not len(rows):
        return torch.zeros(*tokens.shape, values.shape[1], device=tokens.device)
    places = torch.searchsorted(rows, tokens).clamp(max=len(rows) - 1)
    return values[places] * (rows[places] == tokens)[..., None]
