"""Every form of an expert that condu takes: what it looks like, and how to make one from a base and an expert.

The table of docs/experts.md is made from these: `python -m tests.fusion.checkpoints.forms docs/experts.md`.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tests.fusion.checkpoints.hugging_face import Tensors, to_hugging_face

TABLE = re.compile(r"(<!-- forms -->\n\n).*?<!-- end of forms -->", re.DOTALL)


@dataclass(frozen=True)
class Form:
    """One form.

    Attributes:
        title, looks_like: its row in the documentation.
        make: from a new folder, base and expert to what is given to condu, and the tensors that it stands for.
        says: part of the line that condu prints; None: it prints none, as the file is used as it is.
    """

    title: str
    looks_like: str
    make: Callable[[Path, Tensors, Tensors], tuple[Path, Tensors]]
    says: str | None


def saved(path: Path, tensors: Tensors) -> Path:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return path


def _as_it_is(folder: Path, base: Tensors, expert: Tensors) -> tuple[Path, Tensors]:
    return saved(folder / "a.safetensors", expert), expert


def _in_a_folder(folder: Path, base: Tensors, expert: Tensors) -> tuple[Path, Tensors]:
    saved(folder / "model.safetensors", expert)
    (folder / "config.json").write_text("{}")
    return folder, expert


def sharded(folder: Path, tensors: Tensors) -> Path:
    names = sorted(tensors)
    where = {name: f"model-{1 + (number % 3):05d}-of-00003.safetensors" for number, name in enumerate(names)}
    for file in set(where.values()):
        saved(folder / file, {name: tensors[name] for name in names if where[name] == file})
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": where}))
    return index


def _index(folder: Path, base: Tensors, expert: Tensors) -> tuple[Path, Tensors]:
    return sharded(folder, expert), expert


def _wrapped(folder: Path, base: Tensors, expert: Tensors) -> tuple[Path, Tensors]:
    names = {name: f"module._orig_mod.model.clip.{name.replace('visual.', 'visual._orig_mod.')}" for name in expert}
    return saved(folder / "a.safetensors", {names[name]: tensor for name, tensor in expert.items()}), expert


def _text_apart(folder: Path, base: Tensors, expert: Tensors) -> tuple[Path, Tensors]:
    renamed = {
        name if name.startswith("visual.") or name == "logit_scale" else f"text.{name}": tensor
        for name, tensor in expert.items()
    }
    return saved(folder / "a.safetensors", renamed), expert


def _rounded(dtype: torch.dtype) -> Callable[[Path, Tensors, Tensors], tuple[Path, Tensors]]:
    def make(folder: Path, base: Tensors, expert: Tensors) -> tuple[Path, Tensors]:
        halves = {name: tensor.to(dtype) for name, tensor in to_hugging_face(expert).items()}
        return saved(folder / "a.safetensors", halves), {name: t.to(dtype).float() for name, t in expert.items()}

    return make


def _buffers(folder: Path, base: Tensors, expert: Tensors) -> tuple[Path, Tensors]:
    more = {"attn_mask": torch.full((16, 16), float("-inf")).triu(1), "context_length": torch.tensor(16)}
    return saved(folder / "a.safetensors", {**expert, **more}), expert


def _hugging_face(folder: Path, base: Tensors, expert: Tensors) -> tuple[Path, Tensors]:
    more = {f"{tower}.embeddings.position_ids": torch.arange(16)[None] for tower in ("text_model", "vision_model")}
    return saved(folder / "a.safetensors", {**to_hugging_face(expert), **more}), expert


def images_of(base: Tensors, expert: Tensors, *, projection: bool = True) -> Tensors:
    """The expert whose other half is the base's."""
    own = {name for name in expert if name.startswith("visual.") and (projection or name != "visual.proj")}
    return {name: (expert if name in own else base)[name] for name in expert}


def _vision(
    keep: Callable[[str], bool], rename: Callable[[str], str], projection: bool
) -> Callable[[Path, Tensors, Tensors], tuple[Path, Tensors]]:
    def make(folder: Path, base: Tensors, expert: Tensors) -> tuple[Path, Tensors]:
        kept = {rename(name): tensor for name, tensor in to_hugging_face(expert).items() if keep(name)}
        return saved(folder / "a.safetensors", kept), images_of(base, expert, projection=projection)

    return make


def _visual(front: str) -> Callable[[Path, Tensors, Tensors], tuple[Path, Tensors]]:
    def make(folder: Path, base: Tensors, expert: Tensors) -> tuple[Path, Tensors]:
        own = {front + n.removeprefix("visual."): t for n, t in expert.items() if n.startswith("visual.")}
        return saved(folder / "a.safetensors", own), images_of(base, expert)

    return make


def adapter(folder: Path, tensors: Tensors, **config: Any) -> Path:
    """A PEFT adapter; `config` has what differs from a plain one."""
    plain: dict[str, Any] = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "bias": "none"}
    plain |= {"use_dora": False, "init_lora_weights": True, "rank_pattern": {}, "alpha_pattern": {}}
    (folder / "adapter_config.json").write_text(json.dumps(plain | config))
    saved(folder / "adapter_model.safetensors", {f"base_model.model.{name}": t for name, t in tensors.items()})
    return folder


def factors(module: str, rank: int, shape: tuple[int, int], seed: int) -> Tensors:
    """Random factors of one module whose matrix is [out, in]."""
    random = torch.Generator().manual_seed(seed)
    return {
        f"{module}.lora_A.weight": 0.3 * torch.randn(rank, shape[1], generator=random),
        f"{module}.lora_B.weight": 0.3 * torch.randn(shape[0], rank, generator=random),
    }


def product(tensors: Tensors, module: str, scale: float) -> torch.Tensor:
    """scale x B A in float64."""
    return scale * tensors[f"{module}.lora_B.weight"].double() @ tensors[f"{module}.lora_A.weight"].double()


def _lora_of_hugging_face(folder: Path, base: Tensors, expert: Tensors) -> tuple[Path, Tensors]:
    """Queries and a feed-forward layer by rslora with patterns, the projection, and a bias that was trained whole."""
    queries, layer = "vision_model.encoder.layers.1.self_attn.v_proj", "text_model.encoder.layers.0.mlp.fc1"
    bias = to_hugging_face(expert)["vision_model.encoder.layers.0.mlp.fc2.bias"]
    tensors = {
        **factors(queries, 4, (64, 64), 1),
        **factors(layer, 2, (128, 32), 2),
        **factors("visual_projection", 4, (32, 64), 3),
        "vision_model.encoder.layers.0.mlp.fc2.base_layer.bias": bias,
    }
    pattern = r"text_model\.encoder\.layers\.\d+\.mlp\.fc1"
    settings = {"use_rslora": True, "rank_pattern": {pattern: 2}, "alpha_pattern": {"v_proj": 12}, "bias": "all"}
    wanted = {name: tensor.double() for name, tensor in base.items()}
    wanted["visual.transformer.resblocks.1.attn.in_proj_weight"][128:] += product(tensors, queries, 12 / math.sqrt(4))
    wanted["transformer.resblocks.0.mlp.c_fc.weight"] += product(tensors, layer, 8 / math.sqrt(2))
    wanted["visual.proj"] += product(tensors, "visual_projection", 8 / math.sqrt(4)).T
    wanted["visual.transformer.resblocks.0.mlp.c_proj.bias"] = bias.double()
    return adapter(folder, tensors, **settings), wanted


def _lora_of_open_clip(folder: Path, base: Tensors, expert: Tensors) -> tuple[Path, Tensors]:
    """An attention of torch, whose three matrices are one, with its output; a convolution; the token table."""
    at, block = "visual.transformer.resblocks.0.attn", "visual.transformer.resblocks.0.attn.base_layer.out_proj"
    random = torch.Generator().manual_seed(9)
    kernel_A, kernel_B = torch.randn(4, 3, 8, 8, generator=random), torch.randn(64, 4, 1, 1, generator=random)
    tokens_A, tokens_B = torch.randn(4, 49408, generator=random), torch.randn(32, 4, generator=random)
    tensors = {
        **factors(at, 4, (192, 64), 4),
        **factors(block, 4, (64, 64), 5),
        "visual.conv1.lora_A.weight": kernel_A,
        "visual.conv1.lora_B.weight": kernel_B,
        "token_embedding.lora_embedding_A": tokens_A,
        "token_embedding.lora_embedding_B": tokens_B,
    }
    wanted = {name: tensor.double() for name, tensor in base.items()}
    wanted[f"{at}.in_proj_weight"] += product(tensors, at, 2)
    wanted[f"{at}.out_proj.weight"] += product(tensors, block, 2 * 2)  # PEFT adds it twice
    wanted["visual.conv1.weight"] += 2 * torch.einsum("or,rihw->oihw", kernel_B[..., 0, 0].double(), kernel_A.double())
    wanted["token_embedding.weight"] += 2 * (tokens_B.double() @ tokens_A.double()).T
    return adapter(folder, tensors), wanted


def _no_prefix(name: str) -> str:
    return name.removeprefix("vision_model.")


FORMS = {
    form.title: form
    for form in (
        Form("open_clip's names", "one file with exactly the base's names: it is used as it is", _as_it_is, None),
        Form("a folder with one file", "`model.safetensors` beside anything else", _in_a_folder, None),
        Form(
            "shards",
            "`*.safetensors.index.json` with its shards beside it, or their folder",
            _index,
            "open_clip names; float32; 3 shards",
        ),
        Form(
            "wrapped names",
            "`module.`, `_orig_mod.`, `model.` and `clip.` in front, nested too; `_orig_mod.` anywhere",
            _wrapped,
            "open_clip names without module._orig_mod.model.clip.",
        ),
        Form(
            "the text encoder apart",
            "`text.transformer.…` where the base has `transformer.…`, and the other way round",
            _text_apart,
            "open_clip names; float32",
        ),
        Form(
            "other buffers",
            "`position_ids`, `attn_mask`, `num_batches_tracked` and the like, superfluous or missing",
            _buffers,
            "left out attn_mask, context_length",
        ),
        Form(
            "Hugging Face's `CLIPModel`",
            "`vision_model.…`, `text_model.…`, `visual_projection.weight`, `text_projection.weight`, `logit_scale`",
            _hugging_face,
            "Hugging Face names; float32; left out position_ids",
        ),
        Form(
            "float16", "any of these forms; widened to float32", _rounded(torch.float16), "Hugging Face names; float16"
        ),
        Form("bfloat16", "likewise", _rounded(torch.bfloat16), "Hugging Face names; bfloat16"),
        Form(
            "`CLIPVisionModelWithProjection`",
            "`vision_model.…` and `visual_projection.weight`: the base's text encoder stays",
            _vision(lambda name: name.startswith("vis"), str, True),
            "the base's text encoder, logit_scale stay",
        ),
        Form(
            "`CLIPVisionModel`",
            "`embeddings.…`, `encoder.layers.…` (transformers 5), or the same after `vision_model.`: the base's "
            "projection stays too",
            _vision(lambda name: name.startswith("vision_model."), _no_prefix, False),
            "the base's text encoder, logit_scale, projection stay",
        ),
        Form(
            "open_clip's image encoder",
            "`visual.…` alone: the base's text encoder stays",
            _visual("visual."),
            "the base's text encoder, logit_scale stay",
        ),
        Form(
            "open_clip's `model.visual`",
            "the same without `visual.`: `conv1.weight`, `transformer.resblocks.…`, `proj`",
            _visual(""),
            "the base's text encoder, logit_scale stay",
        ),
        Form(
            "PEFT LoRA, Hugging Face's names",
            "a folder with `adapter_config.json` and `adapter_model.safetensors`. `lora_alpha`, `r`, `use_rslora`, "
            "`rank_pattern`, `alpha_pattern`, `fan_in_fan_out`, trained biases and `modules_to_save`",
            _lora_of_hugging_face,
            "a LoRA adapter merged into 4 tensors of the base (rank 2, 4, scale 4, 5.65685, 6); Hugging Face names",
        ),
        Form(
            "PEFT LoRA, open_clip's names",
            "likewise; linear layers, convolutions, embeddings, and `nn.MultiheadAttention`, whose queries, keys and "
            "values are one matrix",
            _lora_of_open_clip,
            "a LoRA adapter merged into 4 tensors of the base (rank 4, scale 2, 4); open_clip names",
        ),
    )
}


def table() -> str:
    """The documentation's table."""
    lines = ["| form | what it looks like |", "|---|---|"]
    return "\n".join(lines + [f"| {form.title} | {form.looks_like} |" for form in FORMS.values()])


if __name__ == "__main__":
    page = Path(sys.argv[1])
    page.write_text(TABLE.sub(lambda found: f"{found[1]}{table()}\n\n<!-- end of forms -->", page.read_text()))
