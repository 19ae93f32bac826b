"""From `base:` in a configuration to a base in the store: a local file, an open_clip tag, or the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import open_clip
from open_clip.pretrained import list_pretrained_tags_by_model

from cluster.config import BaseConfig
from fusion.answers.clip import describe_architecture, layout_of
from fusion.errors import ConfigError
from fusion.store import Store
from fusion.store.blobs import scratch_file
from fusion.tensors import TensorFile, write_tensors
from fusion.versions.bases import Base, put_base

_SHOWN = 4


def resolve_base(config: BaseConfig, store: Store) -> Base:
    """Put the configured base into the store, unless it is there already.

    Raises: ConfigError when the weights or the architecture can't be loaded, StateDictError for a file that is not
        safetensors.
    """
    if config.weights.endswith(".safetensors"):
        path = Path(config.weights)
        if not path.is_file():
            raise ConfigError(f"base.weights: {path}: no such file")
        name, model_cfg, preprocess_cfg = describe_architecture(config.architecture)
        _check_fits(path, config.architecture, model_cfg, preprocess_cfg)
        return put_base(store, path, architecture=name, model_cfg=model_cfg, preprocess_cfg=preprocess_cfg)
    model, name, model_cfg = _published(config)
    preprocess = getattr(model.visual, "preprocess_cfg", {})
    with scratch_file(store) as path:
        write_tensors(path, {key: value.contiguous() for key, value in model.state_dict().items()})
        return put_base(store, path, architecture=name, model_cfg=model_cfg, preprocess_cfg=_jsonable(preprocess))


def _check_fits(path: Path, architecture: str, model_cfg: dict[str, Any], preprocess_cfg: dict[str, Any]) -> None:
    """Refuse weights of another architecture before anything is stored or started. Raises `ConfigError`."""
    wanted = layout_of(model_cfg, preprocess_cfg)
    found = {name: spec.shape for name, spec in TensorFile(path).specs.items()}
    missing, extra = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted))
    other = [
        f"{name} has shape {list(found[name])}, the architecture has {list(shape)}"
        for name, shape in wanted.items()
        if name in found and found[name] != shape
    ]
    if missing or extra:
        raise ConfigError(
            f"base.weights: {path} does not fit base.architecture {architecture}: the file lacks {_some(missing)}, and "
            f"has {_some(extra)} that the architecture lacks"
        )
    if other:
        more = f"; and {len(other) - _SHOWN} more" if len(other) > _SHOWN else ""
        raise ConfigError(
            f"base.weights: {path} does not fit base.architecture {architecture}: {'; '.join(other[:_SHOWN])}{more}"
        )


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return (", ".join(names[:_SHOWN]) or "nothing") + more


def _published(config: BaseConfig) -> tuple[Any, str, dict[str, Any]]:
    """Model, name and configuration of published weights, downloaded or taken from the hub's local cache."""
    try:
        if config.weights.startswith("hf-hub:"):
            model = open_clip.create_model(config.weights, precision="fp32")
            return model, config.weights.removeprefix("hf-hub:"), dict(open_clip.get_model_config(config.weights) or {})
        name, model_cfg, _ = describe_architecture(config.architecture)
        tags = list_pretrained_tags_by_model(config.architecture)
        if config.weights not in tags:
            raise ConfigError(
                f"base.weights: open_clip has no weights {config.weights!r} for {config.architecture}, only "
                f"{', '.join(tags) or 'none'}. Choose one of these, a .safetensors file, or hf-hub:organisation/name"
            )
        published = open_clip.get_pretrained_cfg(config.architecture, config.weights) or {}
        model = open_clip.create_model(config.architecture, pretrained=config.weights, precision="fp32")
        return model, name, {**model_cfg, "quick_gelu": bool(published.get("quick_gelu", model_cfg.get("quick_gelu")))}
    except ConfigError:
        raise
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(
            f"base.weights: {config.weights} could not be loaded ({reason}). Without internet access, give a local "
            ".safetensors file"
        ) from error


def _jsonable(values: dict[str, Any]) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
