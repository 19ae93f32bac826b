"""What users get wrong: one clear message, an exit code, no traceback, and nothing half done."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path
from typing import Any

import pytest

from fusion.store import open_store
from fusion.tensors import write_tensors
from tests.e2e.project import Project
from tests.fusion.test_bad_experts import BAD
from tests.fusion.vectors import random_base
from tests.golden import Golden
from tests.tiny import tiny_task


def refused(project: Project, *arguments: str | Path, code: int, says: str) -> None:
    """The command ends with a code and a message, and without a traceback."""
    done = project.condu_here(*arguments)
    message = " ".join(done.stderr.split())
    assert done.returncode == code, done.stdout + done.stderr
    assert says in message, message
    assert "Traceback" not in done.stdout + done.stderr


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return Project(tmp_path_factory.mktemp("mistakes"))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"trian": {}}, "trian: unknown key; did you mean 'train'?"),
        ({"train": {"step": 3}}, "train.step: unknown key; did you mean 'steps'?"),
        ({"train": {"lr": -1.0}}, "train.lr: Input should be greater than 0 (it is -1.0)"),
        ({"store": None}, "store: is required"),
        ({"store": "ftp://x/y"}, "does not name a store"),
        ({"tasks": []}, "tasks: is empty"),
        ({"tasks": [{"name": "A b", "data": "x"}]}, "task name 'A b' is ill-formed"),
        ({"fusion": {"mode": "iterative", "bits": 2}}, "bits: 2 has no effect in mode 'iterative'"),
        (
            {"base": {"architecture": "tiny.json", "weights": "nowhere.safetensors"}},
            "nowhere.safetensors: no such file",
        ),
        ({"base": {"architecture": "ViT-B-61", "weights": "base.safetensors"}}, "did you mean ViT-B-16"),
        ({"base": {"architecture": "ViT-B-16", "weights": "opnai"}}, "open_clip has no weights 'opnai'"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_a_bad_configuration_is_refused_with_what_is_wrong(changes: dict[str, Any], says: str, shared: Project) -> None:
    shared.write_config(**changes)
    refused(shared, "run", "condu.yaml", code=2, says=says)


def test_a_missing_or_broken_configuration_is_named(shared: Project) -> None:
    refused(shared, "run", "nowhere.yaml", code=2, says="nowhere.yaml: no such file")
    (shared.folder / "broken.yaml").write_text("a: [1")
    refused(shared, "run", "broken.yaml", code=2, says="broken.yaml is not YAML")


@pytest.mark.ray
def test_bad_data_fails_its_task_with_a_reason_and_the_others_go_on(project: Project) -> None:
    broken = tiny_task(project.folder / "data" / "broken", seed=3)
    victim = next((Path(broken) / "train" / "red").iterdir())
    victim.write_bytes(b"no image")
    empty = tiny_task(project.folder / "data" / "empty", seed=4)
    for path in (Path(empty) / "train" / "red").iterdir():
        path.unlink()
    tasks = [
        {"name": "broken", "data": broken},
        {"name": "colours", "data": project.tasks["colours"]},
        {"name": "empty", "data": empty},
        {"name": "missing", "data": "data/nowhere"},
    ]
    project.write_config(tasks=tasks)
    done = project.condu("run", "condu.yaml", "--no-evaluate")
    message = " ".join(done.stderr.split())
    assert done.returncode == 3, done.stdout + done.stderr
    assert victim.name in message
    assert "no training images for 'red'" in message
    assert "nowhere" in message
    assert "fused, version 1" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_fuse_and_export_refuse_what_does_not_fit(shared: Project, tmp_path: Path) -> None:
    golden = Golden("iterative_t2")
    base, experts = golden.write(tmp_path)
    store = tmp_path / "store"
    good = ("fuse", "--store", store, "--base", base, "--expert", f"a={experts[0]}")
    refused(shared, "fuse", "--store", store, "--expert", f"a={experts[0]}", code=2, says="name theta_0 with --base")
    refused(shared, *good[:-1], "a", code=2, says="write NAME=FILE")
    refused(shared, *good[:-1], "a=nowhere.safetensors", code=1, says="nowhere.safetensors: no such file")
    refused(shared, *good, "--mode", "best", code=2, says="choose iterative, joint, lowrank or signed")
    refused(shared, *good, "--mode", "joint", "--bits", "2", code=2, says="--bits 2 has no effect")
    (tmp_path / "pickled.safetensors").write_bytes(b"\x80\x04K\x01.")
    refused(shared, *good[:-1], f"a={tmp_path}/pickled.safetensors", code=1, says="reads safetensors only")
    assert shared.condu_here(*good).returncode == 0
    refused(shared, "fuse", "--store", store, "--expert", f"a={experts[1]}", code=1, says="task name 'a' is taken")
    write_tensors(tmp_path / "other.safetensors", {"x": __import__("torch").zeros(2)})
    refused(
        shared,
        "fuse",
        "--store",
        store,
        "--expert",
        f"b={tmp_path}/other.safetensors",
        code=1,
        says="does not match the base",
    )
    strict = ("--expert", f"same={base}", "--strict")
    refused(shared, *good[:5], *strict, code=1, says="is the base itself")
    warned = shared.condu_here("fuse", "--store", tmp_path / "second", "--base", base, *strict[:2])
    assert warned.returncode == 0
    assert "warning: " in warned.stderr
    assert "relative change 0" in " ".join(warned.stderr.split())
    refused(shared, *good[:4], tmp_path / "other.safetensors", *good[5:], code=1, says="is not the base of")
    refused(shared, "export", "--store", store, "--task", "b", "x.safetensors", code=1, says="did you mean a?")
    refused(shared, "export", "--store", store, "--task", "a", "no/where/x", code=2, says="can't be written")
    refused(shared, "export", "--store", store, "--task", "a", "--version", "9", "x", code=1, says="has no version 9")
    refused(shared, "versions", "show", "--store", tmp_path / "none", code=1, says="nothing was published")


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("NaN", "tensor 'text.proj' holds NaN or infinite values"),
        ("a missing tensor", "bias is missing"),
        ("a file cut in its last tensor", "not a complete safetensors file"),
        ("a pickle under another name", "condu reads safetensors only"),
        ("an empty file", "not a complete safetensors file"),
        ("a folder", "is a folder: name the .safetensors file in it"),
    ],
)
def test_fuse_refuses_an_expert_that_is_none_and_publishes_nothing(
    what: str, says: str, shared: Project, tmp_path: Path
) -> None:
    store = open_store(str(tmp_path / "store"))
    _, base = random_base(tmp_path, store)
    before = {info.key for info in store.list("")}
    bad = tmp_path / "bad.safetensors"
    shutil.copy(base, bad)
    BAD[what][0](bad)
    refused(shared, "fuse", "--store", store.url, "--base", base, "--expert", f"a={bad}", code=1, says=says)
    assert {info.key for info in store.list("")} == before


def test_a_store_that_can_not_be_written_is_told(shared: Project, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    base, experts = Golden("iterative_t2").write(tmp_path)
    arguments = ("--base", base, "--expert", f"a={experts[0]}")
    refused(shared, "fuse", "--store", tmp_path / "file" / "store", *arguments, code=1, says="file")
    refused(shared, "fuse", "--store", "s3://no-credentials-here/x", *arguments, code=1, says="credentials")


def test_predict_refuses_what_it_can_not_answer(shared: Project, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "empty.png").write_bytes(b"")
    refused(shared, "predict", tmp_path / "none.png", code=1, says="no such file")
    refused(shared, "predict", tmp_path / "empty.png", code=1, says="is empty")
    refused(shared, "predict", tmp_path / "text.png", "--task", "a", "--labels", "b", code=2, says="contradict")
    refused(shared, "predict", tmp_path / "text.png", "--server", "http://127.0.0.1:9", code=1, says="does not answer")
    refused(shared, "predict", tmp_path / "text.png", "--store", tmp_path / "x", code=1, says="nothing was published")


@pytest.mark.ray
def test_a_cluster_that_is_not_there_or_too_small_is_told(project: Project) -> None:
    project.write_config(ray={"address": "127.0.0.1:1"})
    done = project.condu("run", "condu.yaml")
    assert done.returncode == 2
    assert "ray.address: '127.0.0.1:1' can't be used" in " ".join(done.stderr.split())
    project.write_config(train={"num_gpus": 8})
    done = project.condu("run", "condu.yaml")
    assert done.returncode == 2, done.stdout + done.stderr
    assert "GPU" in done.stderr
    assert "Traceback" not in done.stderr
    project.write_config(ray={"num_cpus": 2}, train={"lanes": 2}, fusion={"num_cpus": 1})
    done = project.condu("run", "condu.yaml")
    assert done.returncode == 2, done.stdout + done.stderr
    assert "leaves room for 1 workers beside the actor" in " ".join(done.stderr.split())


def test_serving_refuses_an_empty_store_and_a_port_in_use(finished: Project, shared: Project) -> None:
    shared.write_config()
    done = shared.condu("serve", "condu.yaml")
    assert done.returncode == 1
    assert "nothing was published" in " ".join(done.stderr.split())
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = finished.condu("serve", "condu.yaml", "--port", port)
    assert done.returncode == 2
    assert f"can't listen on 127.0.0.1:{port}" in " ".join(done.stderr.split())
