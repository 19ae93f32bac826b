"""A base is judged before anything is stored: weights that do not fit the architecture name the user's own file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cluster.base_source import resolve_base
from cluster.config import BaseConfig
from fusion.errors import ConfigError
from fusion.store import Store, open_store
from fusion.tensors import TensorFile, write_tensors
from tests.tiny import MODEL_CFG, PREPROCESS_CFG, tiny_base


def base_files(tmp_path: Path) -> tuple[Path, Path]:
    elsewhere = open_store(f"file://{tmp_path}/elsewhere")
    base = tiny_base(elsewhere)
    weights = tmp_path / "mine.safetensors"
    weights.write_bytes(elsewhere.get(base.weights.key))
    architecture = tmp_path / "tiny.json"
    architecture.write_text(json.dumps({"model_cfg": MODEL_CFG, "preprocess_cfg": PREPROCESS_CFG}))
    return weights, architecture


def refusal(weights: Path, architecture: Path, store: Store) -> str:
    with pytest.raises(ConfigError) as caught:
        resolve_base(BaseConfig(architecture=str(architecture), weights=str(weights)), store)
    assert list(store.list("")) == []
    return str(caught.value)


def test_weights_that_fit_are_stored(tmp_path: Path, local_store: Store) -> None:
    weights, architecture = base_files(tmp_path)
    base = resolve_base(BaseConfig(architecture=str(architecture), weights=str(weights)), local_store)
    assert local_store.head(base.weights.key) is not None


def test_other_names_are_shown_from_both_sides_and_nothing_is_stored(tmp_path: Path, local_store: Store) -> None:
    weights, architecture = base_files(tmp_path)
    file = TensorFile(weights)
    write_tensors(tmp_path / "wrapped.safetensors", {f"module.{name}": file.tensor(name) for name in file.specs})
    said = refusal(tmp_path / "wrapped.safetensors", architecture, local_store)
    assert f"{tmp_path}/wrapped.safetensors does not fit base.architecture" in said
    assert "lacks ln_final.bias" in said
    assert "has module.ln_final.bias" in said


def test_another_shape_is_shown_and_nothing_is_stored(tmp_path: Path, local_store: Store) -> None:
    weights, architecture = base_files(tmp_path)
    wider = {**MODEL_CFG, "embed_dim": 48}
    architecture.write_text(json.dumps({"model_cfg": wider, "preprocess_cfg": PREPROCESS_CFG}))
    assert "text_projection has shape [32, 32], the architecture has [32, 48]" in refusal(
        weights, architecture, local_store
    )
