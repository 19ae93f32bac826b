"""safetensors files: what is written is read back; an expert that does not match the base is refused with reasons."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fusion.chunks import Buffers, chunks_of
from fusion.errors import StateDictError
from fusion.task_vectors import ExpertVector
from fusion.tensors import (
    TensorFile,
    TensorSpec,
    TensorWriter,
    check_same_layout,
    is_fused,
    sha256_file,
    write_tensors,
)

TENSORS = {
    "half": torch.arange(5, dtype=torch.float16),
    "brain": torch.arange(3, dtype=torch.bfloat16),
    "single": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "count": torch.tensor(7),
    "bits": torch.arange(9, dtype=torch.uint8),
    "empty": torch.zeros(0, 4),
}


def test_the_library_reads_what_we_write_and_tensors_are_aligned(tmp_path: Path) -> None:
    write_tensors(tmp_path / "x.safetensors", TENSORS)
    loaded = load_file(tmp_path / "x.safetensors")
    assert set(loaded) == set(TENSORS)
    for name, tensor in TENSORS.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor), name
    file = TensorFile(tmp_path / "x.safetensors")
    np.testing.assert_array_equal(file.float32("brain"), [0, 1, 2])
    assert file.specs["single"] == TensorSpec("F32", (2, 3))


def test_the_same_tensors_have_the_same_bytes_in_whatever_order_they_are_written(tmp_path: Path) -> None:
    specs = {"a": TensorSpec("F32", (3,)), "b": TensorSpec("U8", (2,))}
    for name, order in (("x", "ab"), ("y", "ba")):
        writer = TensorWriter(tmp_path / name, specs)
        for key in order:
            writer.write(key, np.ones(3, np.float32) if key == "a" else np.ones(2, np.uint8))
        writer.finish()
    assert sha256_file(tmp_path / "x") == sha256_file(tmp_path / "y")


def test_leaving_out_a_tensor_of_the_layout_fails_an_assertion(tmp_path: Path) -> None:
    writer = TensorWriter(tmp_path / "x", {"a": TensorSpec("F32", (3,))})
    with pytest.raises(AssertionError, match="a"):
        writer.finish()


def test_buffers_are_integers_and_batch_norm_statistics() -> None:
    single = TensorSpec("F32", (4,))
    assert is_fused("visual.weight", single)
    assert not is_fused("visual.bn1.running_mean", single)
    assert not is_fused("visual.attn_mask_index", TensorSpec("I64", (4,)))


def write(path: Path, **tensors: torch.Tensor) -> TensorFile:
    write_tensors(path, tensors)
    return TensorFile(path)


def test_every_mismatch_between_an_expert_and_the_base_is_named_at_once(tmp_path: Path) -> None:
    base = write(tmp_path / "b", one=torch.zeros(2), two=torch.zeros(3), three=torch.zeros(2, 2), four=torch.zeros(1))
    expert = write(
        tmp_path / "e",
        two=torch.zeros(4),
        three=torch.zeros(2, 2, dtype=torch.int64),
        four=torch.zeros(1),
        five=torch.zeros(1),
    )
    with pytest.raises(StateDictError) as caught:
        check_same_layout(base, expert)
    for part in (
        "one is missing",
        "five is not in the base",
        "two has shape [4], the base has [3]",
        "three has dtype I64",
    ):
        assert part in str(caught.value)


def test_an_expert_in_another_float_dtype_matches_the_base(tmp_path: Path) -> None:
    base = write(tmp_path / "b", one=torch.zeros(2, dtype=torch.float16))
    expert = write(tmp_path / "e", one=torch.tensor([1.0, 2.0]))
    (chunk,) = chunks_of(base.specs)
    np.testing.assert_array_equal(ExpertVector(base, expert).delta(chunk, Buffers()), [1, 2])


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path("exploded"),))  # type: ignore[return-value]


def test_a_pickle_named_like_a_safetensors_file_is_refused_and_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.safetensors").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(StateDictError, match=r"safetensors only"):
        TensorFile(tmp_path / "evil.safetensors")
    assert not (tmp_path / "exploded").exists()


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    write_tensors(tmp_path / "x", TENSORS)
    data = (tmp_path / "x").read_bytes()
    (tmp_path / "x").write_bytes(data[: len(data) // 2])
    with pytest.raises(StateDictError, match="not a complete safetensors file"):
        TensorFile(tmp_path / "x")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(StateDictError, match="nowhere: no such file"):
        TensorFile(tmp_path / "nowhere")
