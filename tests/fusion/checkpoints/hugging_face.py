"""Hugging Face's CLIP, written here from its documentation: the names of its tensors, and its forward pass.

The way from open_clip's names is the opposite of the product's, and shares nothing with it.
"""

from __future__ import annotations

import torch
from torch.nn.functional import conv2d, embedding, gelu, layer_norm, linear, normalize, softmax

Tensors = dict[str, torch.Tensor]


def to_hugging_face(state: Tensors) -> Tensors:
    """A state dict of open_clip's as `CLIPModel` has it."""
    found = {
        "logit_scale": state["logit_scale"],
        "visual_projection.weight": state["visual.proj"].T,
        "text_projection.weight": state["text_projection"].T,
        "text_model.embeddings.token_embedding.weight": state["token_embedding.weight"],
        "text_model.embeddings.position_embedding.weight": state["positional_embedding"],
        "vision_model.embeddings.class_embedding": state["visual.class_embedding"],
        "vision_model.embeddings.patch_embedding.weight": state["visual.conv1.weight"],
        "vision_model.embeddings.position_embedding.weight": state["visual.positional_embedding"],
    }
    for kind in ("weight", "bias"):
        found[f"text_model.final_layer_norm.{kind}"] = state[f"ln_final.{kind}"]
        found[f"vision_model.pre_layrnorm.{kind}"] = state[f"visual.ln_pre.{kind}"]
        found[f"vision_model.post_layernorm.{kind}"] = state[f"visual.ln_post.{kind}"]
        for here, there in (("transformer", "text_model"), ("visual.transformer", "vision_model")):
            number = 0
            while f"{here}.resblocks.{number}.ln_1.weight" in state:
                old, new = f"{here}.resblocks.{number}", f"{there}.encoder.layers.{number}"
                for letter, part in zip("qkv", state[f"{old}.attn.in_proj_{kind}"].chunk(3), strict=True):
                    found[f"{new}.self_attn.{letter}_proj.{kind}"] = part
                found[f"{new}.self_attn.out_proj.{kind}"] = state[f"{old}.attn.out_proj.{kind}"]
                found[f"{new}.layer_norm1.{kind}"] = state[f"{old}.ln_1.{kind}"]
                found[f"{new}.layer_norm2.{kind}"] = state[f"{old}.ln_2.{kind}"]
                found[f"{new}.mlp.fc1.{kind}"] = state[f"{old}.mlp.c_fc.{kind}"]
                found[f"{new}.mlp.fc2.{kind}"] = state[f"{old}.mlp.c_proj.{kind}"]
                number += 1
    return {name: tensor.contiguous().clone() for name, tensor in found.items()}


def logits(state: Tensors, pixels: torch.Tensor, tokens: torch.Tensor, *, heads: int) -> torch.Tensor:
    """100 x cosine, [images, texts], of a CLIP under Hugging Face's names."""
    return 100 * normalize(_images(state, pixels, heads), dim=1) @ normalize(_texts(state, tokens, heads), dim=1).T


def _images(state: Tensors, pixels: torch.Tensor, heads: int) -> torch.Tensor:
    at = "vision_model.embeddings"
    kernel = state[f"{at}.patch_embedding.weight"]
    patches = conv2d(pixels, kernel, stride=kernel.shape[-1]).flatten(2).transpose(1, 2)
    first = state[f"{at}.class_embedding"].expand(len(pixels), 1, -1)
    hidden = torch.cat([first, patches], 1) + state[f"{at}.position_embedding.weight"]
    hidden = _blocks(state, "vision_model", _norm(state, "vision_model.pre_layrnorm", hidden), heads, mask=None)
    pooled = _norm(state, "vision_model.post_layernorm", hidden[:, 0])
    return linear(pooled, state["visual_projection.weight"])


def _texts(state: Tensors, tokens: torch.Tensor, heads: int) -> torch.Tensor:
    at, length = "text_model.embeddings", tokens.shape[1]
    hidden = embedding(tokens, state[f"{at}.token_embedding.weight"])
    hidden = hidden + state[f"{at}.position_embedding.weight"][:length]
    mask = torch.full((length, length), float("-inf")).triu(1)
    hidden = _norm(state, "text_model.final_layer_norm", _blocks(state, "text_model", hidden, heads, mask=mask))
    pooled = hidden[torch.arange(len(tokens)), tokens.argmax(1)]
    return linear(pooled, state["text_projection.weight"])


def _blocks(state: Tensors, tower: str, hidden: torch.Tensor, heads: int, *, mask: torch.Tensor | None) -> torch.Tensor:
    number = 0
    while f"{tower}.encoder.layers.{number}.layer_norm1.weight" in state:
        at = f"{tower}.encoder.layers.{number}"
        hidden = hidden + _attention(state, f"{at}.self_attn", _norm(state, f"{at}.layer_norm1", hidden), heads, mask)
        inner = gelu(_linear(state, f"{at}.mlp.fc1", _norm(state, f"{at}.layer_norm2", hidden)))
        hidden = hidden + _linear(state, f"{at}.mlp.fc2", inner)
        number += 1
    return hidden


def _attention(state: Tensors, at: str, hidden: torch.Tensor, heads: int, mask: torch.Tensor | None) -> torch.Tensor:
    queries, keys, values = (
        _linear(state, f"{at}.{letter}_proj", hidden).unflatten(-1, (heads, -1)).transpose(1, 2) for letter in "qkv"
    )
    scores = queries @ keys.transpose(-1, -2) / queries.shape[-1] ** 0.5
    weights = softmax(scores if mask is None else scores + mask, dim=-1)
    return _linear(state, f"{at}.out_proj", (weights @ values).transpose(1, 2).flatten(2))


def _linear(state: Tensors, at: str, hidden: torch.Tensor) -> torch.Tensor:
    return linear(hidden, state[f"{at}.weight"], state[f"{at}.bias"])


def _norm(state: Tensors, at: str, hidden: torch.Tensor) -> torch.Tensor:
    return layer_norm(hidden, hidden.shape[-1:], state[f"{at}.weight"], state[f"{at}.bias"])
