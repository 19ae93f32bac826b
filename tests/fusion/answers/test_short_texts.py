"""Texts without their padding have the features of open_clip's own encoders."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fusion.answers.clip import build_clip
from fusion.answers.short_texts import encode_texts
from fusion.store import Store
from fusion.store.node_cache import NodeCache
from tests.fusion.answers.test_folding import TIMM_CFG
from tests.tiny import MODEL_CFG, tiny_base

TEXTS = ["a", "a photo of a cat.", "a rather long text about one thing and another and"]
NO_MASK: dict[str, Any] = {**MODEL_CFG, "text_cfg": {**MODEL_CFG["text_cfg"], "no_causal_mask": True}}


@pytest.mark.parametrize("cfg", [MODEL_CFG, TIMM_CFG, NO_MASK], ids=["CLIP", "CustomTextCLIP", "without a mask"])
def test_features_are_those_of_the_padded_texts(cfg: dict[str, Any], local_store: Store) -> None:
    base = tiny_base(local_store, model_cfg=cfg)
    clip = build_clip(base, NodeCache(local_store).tensors(base.weights))
    seen: list[int] = []
    embedding = next(m for n, m in clip.model.named_modules() if n.endswith("token_embedding"))
    hook = embedding.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape[1]))
    for texts in (TEXTS, TEXTS[:1], TEXTS[1:2]):
        tokens = clip.tokenizer(texts)
        with torch.inference_mode():
            wanted = clip.model.encode_text(tokens, normalize=True)  # type: ignore[operator]
            seen.clear()
            found = encode_texts(clip.model, tokens)
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)
        longest = int((tokens != 0).sum(1).max())
        assert seen == [tokens.shape[1] if cfg is NO_MASK else longest]
    hook.remove()
