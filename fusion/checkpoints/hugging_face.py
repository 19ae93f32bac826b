"""Hugging Face's names for a CLIP (`CLIPModel` and its image encoders alone), and where each tensor is in open_clip's.

The two hold the same numbers. Queries, keys and values are three matrices here and one in open_clip. Projections are
`Linear` layers here, [out, in], and bare matrices there, [in, out]. Source: the state dicts of both libraries; a test
compares their logits.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Place:
    """Where a tensor of a file belongs in the base.

    Attributes:
        name: of the base's tensor.
        part, parts: which of how many equal parts of its rows.
        transposed: whether the file has rows and columns the other way round.
    """

    name: str
    part: int = 0
    parts: int = 1
    transposed: bool = False


_WHOLE = {
    "logit_scale": "logit_scale",
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.weight": "ln_final.weight",
    "text_model.final_layer_norm.bias": "ln_final.bias",
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.pre_layrnorm.weight": "visual.ln_pre.weight",  # the library's own spelling
    "vision_model.pre_layrnorm.bias": "visual.ln_pre.bias",
    "vision_model.post_layernorm.weight": "visual.ln_post.weight",
    "vision_model.post_layernorm.bias": "visual.ln_post.bias",
}
_TRANSPOSED = {"visual_projection.weight": "visual.proj", "text_projection.weight": "text_projection"}
_TOWERS = {"vision_model": "visual.transformer", "text_model": "transformer"}
_IN_BLOCK = {
    "self_attn.out_proj": "attn.out_proj",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
_JOINED = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
"""In the order of open_clip's rows."""
_BLOCK = re.compile(r"(vision_model|text_model)\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")
_OF_IMAGES_ALONE = ("embeddings", "encoder", "pre_layrnorm", "post_layernorm")
"""What names begin with in a file of `CLIPVisionModel`, which is an image encoder and says so nowhere."""


def full_name(name: str) -> str:
    """A name as `CLIPModel` has it, also where the file is of an image encoder alone."""
    return f"vision_model.{name}" if name.partition(".")[0] in _OF_IMAGES_ALONE else name


def is_hugging_face(name: str) -> bool:
    """Whether a (full) name can only be Hugging Face's."""
    return name.startswith(("vision_model.", "text_model.")) or name in _TRANSPOSED


def place_of(name: str) -> Place | None:
    """Where a (full) name belongs; None for a tensor that a CLIP does not have."""
    if name in _WHOLE:
        return Place(_WHOLE[name])
    if name in _TRANSPOSED:
        return Place(_TRANSPOSED[name], transposed=True)
    if (found := _BLOCK.fullmatch(name)) is None:
        return None
    tower, number, layer, kind = found.groups()
    block = f"{_TOWERS[tower]}.resblocks.{number}"
    if layer in _JOINED:
        return Place(f"{block}.attn.in_proj_{kind}", _JOINED.index(layer), len(_JOINED))
    return Place(f"{block}.{_IN_BLOCK[layer]}.{kind}") if layer in _IN_BLOCK else None
