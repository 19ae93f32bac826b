"""CLIP models as condu uses them: built from a base's description, always in eval mode, with unit features.

Letters: B images, C classes, D embedding dimensions, H x W pixels.
"""

from __future__ import annotations

import copy
import difflib
import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch import nn

from fusion.answers.architecture import local_architecture
from fusion.answers.prompts import prompts
from fusion.answers.rgb import to_rgb
from fusion.answers.same_padding import widen_kernels
from fusion.answers.short_texts import encode_texts
from fusion.errors import BaseMismatchError, ConfigError
from fusion.tensors import TensorFile
from fusion.versions.bases import Base

LOGIT_SCALE = 100.0
"""Logits are 100 x cosine for every model: the largest scale that CLIP trains, and what the paper's rules average."""


class TextEncoder(ABC):
    """Texts to features, however the model is kept."""

    @abstractmethod
    def text_features(self, texts: Sequence[str], *, batch_size: int = 256, unit: bool = True) -> torch.Tensor:
        """Text features, float32 [len(texts), D] on the CPU. `unit`: of length 1; else as the encoder gives them."""

    def class_features(self, classes: Sequence[str], templates: Sequence[str]) -> torch.Tensor:
        """Zero-shot weights of classes: `prompt_features` made unit again, float32 [C, D]."""
        return nn.functional.normalize(self.prompt_features(classes, templates), dim=-1)

    def prompt_features(self, classes: Sequence[str], templates: Sequence[str]) -> torch.Tensor:
        """The mean of each class's unit text features over the templates, not unit itself, float32 [C, D]."""
        return self.text_features(prompts(classes, templates)).reshape(len(classes), len(templates), -1).mean(1)


class Clip(TextEncoder):
    """One open_clip model in eval mode with its preprocessing and tokenizer.

    BatchNorm statistics must never change (one forward in training mode ruins a base's zero-shot accuracy), so the
    model is put in eval mode here, and fine-tuning keeps it there.
    """

    def __init__(self, model: nn.Module, preprocess_cfg: Mapping[str, Any], tokenizer: Any) -> None:
        self.model = model.eval().to(memory_format=torch.channels_last)  # a third faster convolutions on a CPU
        self.preprocess_cfg = dict(preprocess_cfg)
        self.preprocess = image_transform_v2(preprocess_config(preprocess_cfg), is_train=False)
        self.tokenizer = tokenizer

    @property
    def image_size(self) -> tuple[int, int]:
        size = self.preprocess_cfg["size"]
        return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))

    def own_bytes(self, base: Clip) -> int:
        """Bytes of the weights that this model does not share with another."""
        shared = {tensor.data_ptr() for tensor in base.model.state_dict().values()}
        return sum(one.nbytes for one in self.model.state_dict().values() if one.data_ptr() not in shared)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def pixels(self, images: Sequence[Image.Image], *, background: str | None = None) -> torch.Tensor:
        """Preprocess opened or decoded images: float32 [B, 3, H, W] on the CPU. `background`: see `to_rgb`."""
        return torch.stack([self.preprocess(to_rgb(image, background=background)) for image in images])

    @torch.inference_mode()
    def image_features(self, pixels: torch.Tensor, *, batch_size: int = 64, unit: bool = True) -> torch.Tensor:
        """Image features, float32 [B, D] on the CPU, from preprocessed pixels [B, 3, H, W].

        Args:
            unit: of length 1; else as the encoder gives them.
        """
        features = [
            self.model.encode_image(  # type: ignore[operator]
                batch.to(self.device, memory_format=torch.channels_last), normalize=unit
            )
            .float()
            .cpu()
            for batch in pixels.split(batch_size)
        ]
        return torch.cat(features) if features else torch.empty(0, self.embed_dim)

    @torch.inference_mode()
    def text_features(self, texts: Sequence[str], *, batch_size: int = 256, unit: bool = True) -> torch.Tensor:
        tokens = self.tokenizer(list(texts))
        features = [
            encode_texts(self.model, batch.to(self.device), unit=unit).float().cpu()
            for batch in tokens.split(batch_size)
        ]
        return torch.cat(features)

    @property
    def embed_dim(self) -> int:
        return int(self.text_features(["a"]).shape[-1])

    def copy_with(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> Clip:
        """A second model of the same architecture: the named tensors are its own, all others are shared with this one.

        Tensors are copied one by one, so peak extra memory is the new ones and one tensor. Train neither of the two
        models afterwards.
        """
        model, modules = modules_copied(self.model), {}
        for name, tensor in tensors:
            prefix, _, key = name.rpartition(".")
            if prefix not in modules:
                modules[prefix] = _submodule(model, prefix, name)
            _replace(modules[prefix], key, name, tensor)
        other = copy.copy(self)
        other.model = model
        return other


def modules_copied(
    module: nn.Module, other: Callable[[nn.Module, str], nn.Module | None] = lambda *_: None, name: str = ""
) -> nn.Module:
    """A copy of the modules that holds the same tensors. `copy.deepcopy` takes longer than a forward.

    Args:
        other: what stands in the copy in place of a module, given its name too; None: its copy.
        name: of `module`.
    """
    if (found := other(module, name)) is not None:
        return found
    found = copy.copy(module)
    values = found.__dict__
    for kind in ("_parameters", "_buffers"):
        values[kind] = dict(values[kind])
    values["_modules"] = {
        key: child and modules_copied(child, other, f"{name}.{key}" if name else key)
        for key, child in module._modules.items()
    }
    return found


def _submodule(model: nn.Module, prefix: str, name: str) -> nn.Module:
    try:
        return model.get_submodule(prefix)
    except AttributeError:
        raise _foreign(name) from None


def _replace(module: nn.Module, key: str, name: str, tensor: torch.Tensor) -> None:
    """Give a module a tensor of its own in place of one, in that one's dtype and memory layout."""
    values: dict[str, Any] = module._parameters if module._parameters.get(key) is not None else module._buffers
    if values.get(key) is None:
        raise _foreign(name)
    old = values[key]
    new = torch.empty_like(old, requires_grad=False).copy_(tensor.reshape(old.shape))
    values[key] = nn.Parameter(new, requires_grad=False) if isinstance(old, nn.Parameter) else new


def _foreign(name: str) -> BaseMismatchError:
    return BaseMismatchError(f"tensor {name!r} is not in the model: the weights belong to another architecture")


def load_tensors(model: nn.Module, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Copy named tensors into a model, converting to its dtypes."""
    own = model.state_dict()
    with torch.no_grad():
        for name, tensor in tensors:
            if name not in own:
                raise _foreign(name)
            own[name].copy_(tensor.reshape(own[name].shape))


def build_clip(base: Base, weights: TensorFile | None, *, device: str = "cpu") -> Clip:
    """Build a base's model in fp32, whatever dtype its file has, and load its weights (None: leave them random).

    Raises:
        BaseMismatchError: the base has no architecture, or its weights do not fit it.
    """
    if base.model_cfg is None or base.preprocess_cfg is None:
        raise BaseMismatchError(
            f"base {base.sha256[:12]}… was stored without an architecture (`condu fuse` on plain weights): it can be "
            "fused and exported; to run it, publish from a configuration that names `base.architecture`"
        )
    with local_architecture(model_cfg=base.model_cfg, preprocess_cfg=base.preprocess_cfg) as name, _quiet_root_logger():
        model = open_clip.create_model(name, load_weights=False, precision="fp32")
        tokenizer = open_clip.get_tokenizer(name)
    if weights is not None:
        missing = sorted(set(model.state_dict()) - set(weights.specs))
        extra = sorted(set(weights.specs) - set(model.state_dict()))
        if missing or extra:
            raise BaseMismatchError(
                f"{weights.label} does not fit architecture {base.architecture}: "
                f"missing {missing[:4] or 'nothing'}, unexpected {extra[:4] or 'nothing'}"
            )
        load_tensors(model, ((name, weights.tensor(name)) for name in weights.specs))
    return Clip(widen_kernels(model).to(device), base.preprocess_cfg, tokenizer)


def layout_of(model_cfg: Mapping[str, Any], preprocess_cfg: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors that an architecture has. Builds no weights: a tenth of a second, no memory."""
    architecture = local_architecture(model_cfg=model_cfg, preprocess_cfg=preprocess_cfg)
    with architecture as name, _quiet_root_logger(), torch.device("meta"):
        model = open_clip.create_model(name, load_weights=False, device="meta")
    return {tensor: tuple(values.shape) for tensor, values in model.state_dict().items()}


def describe_architecture(architecture: str) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Name, model_cfg and preprocess_cfg of an architecture.

    Args:
        architecture: an open_clip name (`ViT-B-16`), or the path of a JSON file in open_clip's own layout,
            `{"model_cfg": …, "preprocess_cfg": …}`.
    Raises:
        ConfigError: open_clip does not know the name, or the file is not such a description.
    """
    path = Path(architecture)
    if path.suffix == ".json":
        try:
            config = json.loads(path.read_text())
            model_cfg = config["model_cfg"]
        except FileNotFoundError:
            raise ConfigError(f"base.architecture: {architecture}: no such file") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"base.architecture: {architecture} is not an open_clip configuration ({error})"
            ) from error
        return path.stem, model_cfg, _preprocess_dict(model_cfg, config.get("preprocess_cfg") or {})
    model_cfg = open_clip.get_model_config(architecture)
    if model_cfg is None:
        near = difflib.get_close_matches(architecture, open_clip.list_models(), n=3)
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise ConfigError(f"base.architecture: open_clip has no architecture {architecture!r}{hint}")
    return architecture, model_cfg, _preprocess_dict(model_cfg, {})


def _preprocess_dict(model_cfg: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    size = model_cfg["vision_cfg"].get("image_size", 224)
    values = asdict(PreprocessCfg(**{"size": size, **given}))
    return json.loads(json.dumps(values))  # as it is read from the store: lists instead of tuples


def preprocess_config(values: Mapping[str, Any]) -> PreprocessCfg:
    """open_clip's own record of a base's `preprocess_cfg`, whose tuples became lists in JSON."""
    return PreprocessCfg(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})


class _quiet_root_logger:
    """open_clip warns on the root logger that no weights were loaded, which is intended here."""

    def __enter__(self) -> None:
        self._level = logging.getLogger().level
        logging.getLogger().setLevel(logging.ERROR)

    def __exit__(self, *_: object) -> None:
        logging.getLogger().setLevel(self._level)
