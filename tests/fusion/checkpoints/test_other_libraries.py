"""Against the real thing, where it is installed: models of `transformers`, adapters of `peft`. condu needs neither."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fusion.answers.clip import build_clip
from tests.fusion.checkpoints.hugging_face import Tensors, to_hugging_face
from tests.fusion.checkpoints.test_forms import Given

SKIPPED = (
    "is not installed: condu does not need it, and `make other-libraries` brings it; "
    "tests/fusion/checkpoints/test_forms.py has a forward pass of its own"
)


@pytest.fixture
def given(tmp_path: Path) -> Given:
    return Given(tmp_path)


def hugging_face_model(state: Tensors, kind: str) -> Any:
    """A model of the tiny base's architecture with the given weights."""
    transformers = pytest.importorskip("transformers", reason=f"transformers {SKIPPED}")
    both = {"num_attention_heads": 2, "hidden_act": "gelu", "projection_dim": 32}
    text = {"hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 1, "max_position_embeddings": 16}
    vision = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "image_size": 32, "patch_size": 8}
    config = transformers.CLIPConfig(
        projection_dim=32, text_config={**text, **both, "vocab_size": 49408}, vision_config={**vision, **both}
    )
    model = getattr(transformers, kind)(config if kind == "CLIPModel" else config.vision_config)
    own = model.state_dict()
    front = "" if any(name.startswith("vision_model.") for name in own) else "vision_model."
    model.load_state_dict({name: state[front + name] if front + name in state else own[name] for name in own})
    return model.eval()


@pytest.mark.parametrize("shard", ["1GB", "300KB"], ids=["one file", "shards"])
def test_a_saved_clip_model_has_the_same_logits_in_both_libraries(given: Given, tmp_path: Path, shard: str) -> None:
    model = hugging_face_model(to_hugging_face(given.expert), "CLIPModel")
    model.save_pretrained(tmp_path / "saved", max_shard_size=shard)
    pixels = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    with given.opened(tmp_path / "saved") as (found, note):
        assert note is not None
        clip = build_clip(given.base, found)
        said = ["a red picture.", "a blue picture.", "green"]
        ours = clip.image_features(pixels) @ clip.text_features(said).T
        with torch.inference_mode():
            theirs = (
                model(input_ids=clip.tokenizer(said), pixel_values=pixels).logits_per_image / model.logit_scale.exp()
            )
    print(f"largest difference of the cosines: {float((ours - theirs).abs().max()):.2e}")
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["CLIPVisionModelWithProjection", "CLIPVisionModel"])
def test_a_saved_image_encoder_has_the_same_features_in_both_libraries(given: Given, tmp_path: Path, kind: str) -> None:
    model = hugging_face_model(to_hugging_face(given.expert), kind)
    model.save_pretrained(tmp_path / "saved")
    pixels = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    with given.opened(tmp_path / "saved") as (found, _), torch.inference_mode():
        clip, out = build_clip(given.base, found), model(pixel_values=pixels)
        theirs = out.pooler_output @ given.tensors["visual.proj"] if kind == "CLIPVisionModel" else out.image_embeds
        torch.testing.assert_close(
            clip.image_features(pixels), nn.functional.normalize(theirs, dim=1), rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize(
    "settings", [{}, {"use_rslora": True, "alpha_pattern": {"fc1": 3}, "rank_pattern": {"fc2": 5}}]
)
def test_an_adapter_of_a_hugging_face_model_is_what_peft_merges(
    given: Given, tmp_path: Path, settings: dict[str, Any]
) -> None:
    model = hugging_face_model(to_hugging_face(given.tensors), "CLIPModel")
    targets = ["q_proj", "v_proj", "fc1", "fc2", "visual_projection", "token_embedding"]
    merged = to_merged(model, tmp_path / "adapter", target_modules=targets, r=3, lora_alpha=7, **settings)
    wanted = {name: merged[name] for name in to_hugging_face(given.tensors)}
    with given.opened(tmp_path / "adapter") as (found, _):
        ours = to_hugging_face({name: torch.from_numpy(found.float32(name)) for name in found.specs})
    difference = max(float((ours[name] - wanted[name]).abs().max()) for name in wanted)
    print(f"largest difference of the merged weights: {difference:.2e}")
    assert difference < 1e-6


def test_an_adapter_of_an_open_clip_model_is_what_peft_merges(given: Given, tmp_path: Path) -> None:
    model = build_clip(given.base, given.file).model
    targets = ["attn", "c_fc", "c_proj", "conv1"]
    merged = to_merged(model, tmp_path / "adapter", target_modules=targets, r=3, lora_alpha=7)
    with given.opened(tmp_path / "adapter") as (found, _):
        difference = max(
            float((torch.from_numpy(found.float32(name)) - merged[name]).abs().max()) for name in given.tensors
        )
    assert difference < 1e-6


def to_merged(model: nn.Module, folder: Path, **config: Any) -> Tensors:
    """Save an adapter of a model with random factors; the model's weights with it merged, by PEFT itself."""
    peft = pytest.importorskip("peft", reason=f"peft {SKIPPED}")
    adapted = peft.get_peft_model(model, peft.LoraConfig(**config))
    random = torch.Generator().manual_seed(3)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            parameter.data = 0.2 * torch.randn(parameter.shape, generator=random)
    adapted.save_pretrained(folder)
    return dict(adapted.merge_and_unload().state_dict())
