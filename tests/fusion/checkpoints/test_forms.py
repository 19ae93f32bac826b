"""An expert is the same task whatever form it comes in: each one of docs/experts.md, and what they have in common."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from fusion.answers.clip import build_clip
from fusion.checkpoints import open_expert
from fusion.chunks import Buffers, chunks_of
from fusion.decouple import read_record
from fusion.fuse import ExpertToFuse, fuse_experts
from fusion.modes import DEFAULT_MODE
from fusion.store import Store, open_store
from fusion.store.node_cache import NodeCache
from fusion.task_vectors import ExpertVector
from fusion.tensors import TensorFile, check_same_layout
from fusion.versions.bases import Base
from tests.fusion.checkpoints.forms import FORMS, saved, sharded, table
from tests.fusion.checkpoints.hugging_face import Tensors, logits, to_hugging_face
from tests.tiny import tiny_base

ROOT = Path(__file__).resolve().parents[3]


class Given:
    """A base in a store, its state dict, and an expert of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store: Store = open_store((folder / "store").as_uri())
        self.cache = NodeCache(self.store, folder / "cache")
        self.base: Base = tiny_base(self.store)
        self.file = self.cache.tensors(self.base.weights)
        self.tensors: Tensors = {name: self.file.tensor(name).clone() for name in self.file.specs}
        random = torch.Generator().manual_seed(7)
        self.expert = {n: t + 0.02 * torch.randn(t.shape, generator=random) for n, t in self.tensors.items()}

    @contextmanager
    def opened(self, path: Path) -> Iterator[tuple[TensorFile, str | None]]:
        with open_expert(path, self.file, self.store) as found:
            yield TensorFile(found.path, label=found.label), found.note


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Given:
    return Given(tmp_path_factory.mktemp("forms"))


def vector_sha256(base: TensorFile, expert: TensorFile) -> str:
    digest, vector, buffers = hashlib.sha256(), ExpertVector(base, expert), Buffers()
    for chunk in chunks_of({name: base.specs[name] for name in base.fused_names()}):
        digest.update(vector.delta(chunk, buffers).tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize("title", FORMS)
def test_a_form_becomes_the_expert_under_the_base_s_names(title: str, given: Given, tmp_path: Path) -> None:
    path, wanted = FORMS[title].make(tmp_path, given.tensors, given.expert)
    before = {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()}
    with given.opened(path) as (found, note):
        check_same_layout(given.file, found)
        for name, tensor in wanted.items():
            if tensor.dtype == torch.float64:
                np.testing.assert_allclose(found.float32(name), tensor.numpy(), rtol=1e-6, atol=1e-6, err_msg=name)
            else:
                np.testing.assert_array_equal(found.float32(name), tensor.numpy(), err_msg=name)
        says = FORMS[title].says
        assert (note is None) if says is None else says in str(note)
    assert {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()} == before, "what was given is left alone"
    assert not list((given.folder / "store" / "tmp").iterdir()), "and nothing is left behind"


def test_the_page_has_every_form() -> None:
    page = (ROOT / "docs" / "experts.md").read_text()
    assert f"<!-- forms -->\n\n{table()}\n\n<!-- end of forms -->" in page, (
        "python -m tests.fusion.checkpoints.forms docs/experts.md"
    )


def test_both_libraries_names_give_the_same_task_vector_and_the_same_trigger(given: Given, tmp_path: Path) -> None:
    ours = saved(tmp_path / "ours.safetensors", given.expert)
    theirs = saved(tmp_path / "theirs.safetensors", to_hugging_face(given.expert))
    vectors, triggers = [], []
    for number, path in enumerate((ours, theirs)):
        store = open_store((tmp_path / f"store-{number}").as_uri())
        base, cache = tiny_base(store), NodeCache(store, tmp_path / "cache")
        with given.opened(path) as (found, _):
            vectors.append(vector_sha256(given.file, found))
            expert = ExpertToFuse("a", found.path, label=found.label)
            manifest = fuse_experts(cache, base, [expert], mode={"name": DEFAULT_MODE}).manifest
        trigger = read_record(cache, manifest, "a").trigger
        assert trigger is not None
        triggers.append(trigger.sha256)
    assert vectors[0] == vectors[1]
    assert triggers[0] == triggers[1]


def test_an_expert_in_another_form_is_recognised_when_it_comes_again(given: Given, tmp_path: Path) -> None:
    path = saved(tmp_path / "a.safetensors", to_hugging_face(given.expert))
    results = []
    for _ in range(2):
        with given.opened(path) as (found, _):
            expert = ExpertToFuse("again", found.path)
            results.append(fuse_experts(given.cache, given.base, [expert], mode={"name": DEFAULT_MODE}).fused)
    assert results == [("again",), ()]


def test_its_logits_are_those_of_the_other_library_s_forward_pass(given: Given, tmp_path: Path) -> None:
    theirs = to_hugging_face(given.expert)
    pixels = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with given.opened(saved(tmp_path / "a.safetensors", theirs)) as (found, _):
        clip = build_clip(given.base, found)
        tokens = clip.tokenizer(["a red picture.", "blue"])
        texts = clip.text_features(["a red picture.", "blue"])
        ours = 100 * clip.image_features(pixels) @ texts.T
    torch.testing.assert_close(ours, logits(theirs, pixels, tokens, heads=2), rtol=1e-4, atol=1e-4)


def test_shards_may_have_any_names_and_the_folder_will_do(given: Given, tmp_path: Path) -> None:
    (tmp_path / "checkpoint").mkdir()
    index = sharded(tmp_path / "checkpoint", {f"model.{n}": t for n, t in to_hugging_face(given.expert).items()})
    found = []
    for path in (index, index.parent):
        with given.opened(path) as (file, note):
            found.append((vector_sha256(given.file, file), note))
    assert found[0] == found[1]
    assert found[0][1] == "Hugging Face names without model.; float32; 3 shards"


def test_an_adapter_may_be_named_by_any_of_its_files(given: Given, tmp_path: Path) -> None:
    folder, _ = FORMS["PEFT LoRA, Hugging Face's names"].make(tmp_path, given.tensors, given.expert)
    found = set()
    for path in (folder, folder / "adapter_model.safetensors", folder / "adapter_config.json"):
        with given.opened(path) as (file, _):
            found.add(vector_sha256(given.file, file))
    assert len(found) == 1


def test_fan_in_fan_out_transposes_the_product(given: Given, tmp_path: Path) -> None:
    folder, wanted = FORMS["PEFT LoRA, Hugging Face's names"].make(tmp_path, given.tensors, given.expert)
    config = json.loads((folder / "adapter_config.json").read_text())
    weights = TensorFile(folder / "adapter_model.safetensors")
    square = {n: weights.tensor(n).clone() for n in weights.specs if "v_proj" in n}
    saved(folder / "adapter_model.safetensors", square)
    (folder / "adapter_config.json").write_text(json.dumps({**config, "fan_in_fan_out": True}))
    name = "visual.transformer.resblocks.1.attn.in_proj_weight"
    added = (wanted[name] - given.tensors[name].double())[128:].T
    with given.opened(folder) as (file, _):
        own = file.float32(name)[128:]
    np.testing.assert_allclose(own, (given.tensors[name][128:].double() + added).numpy(), rtol=1e-6, atol=1e-6)
