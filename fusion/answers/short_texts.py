"""Texts encoded at the length that they have.

A CLIP tokenizer pads every text to the context length, 77 for OpenAI's models, while the name of a class in a template
takes about ten tokens. Behind a causal mask nothing that is read depends on the padding, so it is left out.

Letters: N texts, L tokens, D dimensions of the embedding.
"""

from __future__ import annotations

import copy
from typing import Any

import open_clip
import torch
from open_clip.transformer import TextTransformer
from torch import nn

_PADDING = 0
_POOLED_AT_THE_END_OF_THE_TEXT = ("argmax", "eos")


def text_tower(model: nn.Module) -> Any:
    """The module of a model that encodes texts, where it only looks back and texts may be shortened; else None."""
    text = getattr(model, "text", None)
    tower: Any = text if isinstance(text, TextTransformer) else model if isinstance(model, open_clip.CLIP) else None
    return tower if tower is not None and _only_looks_back(tower) else None


def shortened(tokens: torch.Tensor) -> torch.Tensor:
    """Tokens without the columns that are padding in all texts."""
    return tokens[:, : int((tokens != _PADDING).any(0).nonzero().max()) + 1].contiguous()


def encode_texts(model: nn.Module, tokens: torch.Tensor, *, unit: bool = True) -> torch.Tensor:
    """What `model.encode_text(tokens, normalize=unit)` gives, [N, D], of tokens [N, L]."""
    encoder: Any = model
    if (tower := text_tower(model)) is not None:
        tokens = shortened(tokens)
        encoder = _with_context(tower, tokens.shape[1])
        if tower is not model:
            found: torch.Tensor = encoder(tokens)
            return nn.functional.normalize(found, dim=-1) if unit else found
    features: torch.Tensor = encoder.encode_text(tokens, normalize=unit)
    return features


def _only_looks_back(tower: Any) -> bool:
    pooled = getattr(tower, "pool_type", None) or getattr(tower, "text_pool_type", None)
    return (
        isinstance(tower.attn_mask, torch.Tensor)
        and getattr(tower, "cls_emb", None) is None
        and pooled in _POOLED_AT_THE_END_OF_THE_TEXT
    )


def _with_context(tower: Any, length: int) -> Any:
    """The same tower with a shorter context; all weights are shared."""
    short = copy.copy(tower)
    positions = nn.Parameter(tower.positional_embedding[:length], requires_grad=False)
    short._parameters = {**tower._parameters, "positional_embedding": positions}
    short._buffers = {**tower._buffers, "attn_mask": tower.attn_mask[:length, :length]}
    return short
