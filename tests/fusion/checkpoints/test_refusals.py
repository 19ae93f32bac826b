"""What can't be used is refused with both sides and the next step, before anything is read or stored."""

from __future__ import annotations

import json
import pickle
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fusion.errors import StateDictError
from tests.fusion.checkpoints.forms import adapter, factors, saved, sharded
from tests.fusion.checkpoints.hugging_face import to_hugging_face
from tests.fusion.checkpoints.test_forms import Given

MODULE = "vision_model.encoder.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Given:
    return Given(tmp_path_factory.mktemp("refusals"))


def refused(given: Given, path: Path) -> str:
    with pytest.raises(StateDictError) as caught, given.opened(path):
        pass
    assert not list((given.folder / "store" / "tmp").iterdir())
    return str(caught.value)


def test_names_that_have_no_place_are_shown_beside_the_base_s_with_what_is_in_front(
    given: Given, tmp_path: Path
) -> None:
    names = {f"net.backbone.{name}": tensor for name, tensor in given.expert.items()}
    said = refused(given, saved(tmp_path / "a.safetensors", names))
    assert "your file: net.backbone.ln_final.bias, net.backbone.ln_final.weight" in said
    assert "the base: ln_final.bias, ln_final.weight" in said
    assert f"0 of the file's {len(names)} tensors have a place, {len(names)} of the base's are not filled" in said
    assert f"{len(names)} names begin with 'net.backbone.' where the base's begin with ''" in said


def test_another_library_s_names_are_told(given: Given, tmp_path: Path) -> None:
    names = {f"blocks.{number}.a{number}": tensor for number, tensor in enumerate(given.expert.values())}
    assert "No name of the one ends like a name of the other" in refused(
        given, saved(tmp_path / "a.safetensors", names)
    )


def test_another_number_of_blocks_and_other_shapes_are_told(given: Given, tmp_path: Path) -> None:
    deeper = dict(given.expert)
    for name, tensor in given.expert.items():
        if "visual.transformer.resblocks.1." in name:
            deeper[name.replace("resblocks.1.", "resblocks.2.")] = tensor
    said = refused(given, saved(tmp_path / "deeper.safetensors", to_hugging_face(deeper)))
    assert "Your file has more blocks in visual.transformer.resblocks than the base" in said
    shallow = {name: tensor for name, tensor in given.expert.items() if "visual.transformer.resblocks.1." not in name}
    said = refused(given, saved(tmp_path / "shallow.safetensors", shallow))
    assert "Your file has fewer blocks in visual.transformer.resblocks than the base" in said
    other = to_hugging_face(given.expert)
    other["vision_model.embeddings.patch_embedding.weight"] = torch.zeros(64, 3, 16, 16)
    said = refused(given, saved(tmp_path / "patches.safetensors", other))
    assert (
        "patch_embedding.weight has shape [64, 3, 16, 16], the base has [64, 3, 8, 8] for it (visual.conv1.wei" in said
    )


def test_a_part_of_a_joined_matrix_or_a_head_of_its_own_is_no_expert(given: Given, tmp_path: Path) -> None:
    tensors = to_hugging_face(given.expert)
    without = {name: tensor for name, tensor in tensors.items() if name != f"{MODULE}.weight"}
    said = refused(given, saved(tmp_path / "a.safetensors", without))
    assert "visual.transformer.resblocks.0.attn.in_proj_weight is missing" in said
    said = refused(given, saved(tmp_path / "b.safetensors", {**tensors, "classifier.weight": torch.zeros(3, 64)}))
    assert "classifier.weight is not in the base" in said
    said = refused(
        given, saved(tmp_path / "c.safetensors", {**given.expert, "module.visual.proj": torch.zeros(64, 32)})
    )
    assert "'module.visual.proj' and 'visual.proj' both are 'visual.proj' of the base" in said


def break_index(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def spoil(index: Path) -> None:
        document = json.loads(index.read_text())
        change(document)
        index.write_text(json.dumps(document))

    return spoil


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (
            lambda index: (index.parent / "model-00002-of-00003.safetensors").unlink(),
            "names shards that are not beside",
        ),
        (break_index(lambda found: found.pop("weight_map")), "is not the index of a sharded checkpoint"),
        (break_index(lambda found: found["weight_map"].update(x="../x.safetensors")), "have to lie beside their index"),
        (
            break_index(lambda found: found["weight_map"].update(x="model-00001-of-00003.safetensors")),
            "says that 'x' is in model-00001-of-00003.safetensors, but it is not",
        ),
        (lambda index: index.write_text("{"), "is not the index of a sharded checkpoint"),
    ],
    ids=["a missing shard", "no map", "a path", "a missing tensor", "no JSON"],
)
def test_a_broken_index_is_refused(spoil: Callable[[Path], object], says: str, given: Given, tmp_path: Path) -> None:
    index = sharded(tmp_path, given.expert)
    spoil(index)
    assert says in refused(given, index)


def test_a_folder_of_several_files_names_them(given: Given, tmp_path: Path) -> None:
    assert "is a folder: name the .safetensors file in it (it has none)" in refused(given, tmp_path)
    for name in "ab":
        saved(tmp_path / f"{name}.safetensors", given.expert)
    assert "(it has a.safetensors, b.safetensors)" in refused(given, tmp_path)


class Bomb:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return exec, ("raise SystemExit('a pickle was loaded')",)


@pytest.mark.parametrize("name", ["a.pt", "a.bin", "a.pth", "a.ckpt", "a.safetensors", "folder/pytorch_model.bin"])
def test_a_pickle_is_refused_with_a_command_and_never_loaded(name: str, given: Given, tmp_path: Path) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(pickle.dumps(Bomb()))
    said = refused(given, path if path.parent == tmp_path else path.parent)
    assert f"{path} is a PyTorch pickle, and condu reads safetensors only" in said
    assert shlex.split(said.splitlines()[-1])[:2] == ["python", "-c"]


@pytest.mark.processes
def test_the_command_converts_a_pickle_into_an_expert(given: Given, tmp_path: Path) -> None:
    path = tmp_path / "it's mine.pt"
    torch.save({"state_dict": {f"module.{n}": t for n, t in given.expert.items()}, "epoch": 3}, path)
    command = shlex.split(refused(given, path).splitlines()[-1])
    subprocess.run([sys.executable, *command[1:]], check=True, timeout=120)
    with given.opened(Path(command[-1])) as (found, note):
        assert note == "open_clip names without module.; float32"
        assert torch.equal(found.tensor("visual.proj"), given.expert["visual.proj"])


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"use_dora": True}, "use_dora (DoRA, which also scales"),
        (
            {"use_qalora": True, "layer_replication": [[0, 1]]},
            "use_qalora (QALoRA, whose inputs are pooled), layer_repl",
        ),
        ({"invented": 1}, "invented (a setting that condu does not know)"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa', which changes the base's own weights"),
        ({"peft_type": "IA3"}, "a IA3 adapter can't be merged"),
        ({"r": 5}, "has rank 4, "),
        ({"alpha_pattern": {"(": 3}}, "is not what PEFT writes"),
        ({"lora_alpha": "much"}, "is not what PEFT writes"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_an_adapter_that_is_no_plain_lora_is_refused_by_name(
    config: dict[str, Any], says: str, given: Given, tmp_path: Path
) -> None:
    assert says in refused(given, adapter(tmp_path, factors(MODULE, 4, (64, 64), 0), **config))


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({f"{MODULE}.lora_magnitude_vector": torch.zeros(64)}, "is no factor of plain LoRA"),
        ({f"{MODULE}.lora_B.bias": torch.zeros(64)}, "is no factor of plain LoRA"),
        ({f"{MODULE}.lora_A.weight": torch.zeros(4, 64)}, "the file is incomplete"),
        (factors(MODULE, 4, (48, 64), 0), "is an adapter of another base"),
        (
            factors("text_model.encoder.layers.7.mlp.fc1", 4, (128, 32), 0),
            "text_model.encoder.layers.7.mlp.fc1 is not in",
        ),
        ({"classifier.weight": torch.zeros(3, 64)}, "classifier.weight is not in the base"),
        ({}, "holds no tensor"),
    ],
    ids=["DoRA", "a bias of B", "A alone", "another width", "another depth", "a head", "nothing"],
)
def test_factors_that_have_no_place_are_refused(
    tensors: dict[str, torch.Tensor], says: str, given: Given, tmp_path: Path
) -> None:
    assert says in refused(given, adapter(tmp_path, tensors))
