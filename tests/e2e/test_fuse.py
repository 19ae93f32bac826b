"""`condu fuse` beyond parity: reports, archives, fusing anew, options that contradict, and a quick start."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from fusion.store import open_store
from fusion.versions.history import Versions
from tests.e2e.project import ROOT, Project
from tests.e2e.test_mistakes import refused
from tests.fusion.vectors import SHAPES, random_base, random_expert


@pytest.fixture
def experts(project: Project) -> list[str]:
    """Arguments for two experts, and a base beside them in `base-0.safetensors`."""
    _, path = random_base(project.folder, open_store(str(project.folder / "elsewhere")))
    found = [random_expert(project.folder, path, task, seed=seed) for seed, task in enumerate("ab")]
    return [f"--expert={expert.task}={expert.weights}" for expert in found]


def fuse(project: Project, *arguments: str | Path) -> str:
    done = project.condu_here("fuse", "--store", project.folder / "plain", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_report_is_a_table_a_json_file_and_a_picture_a_version(project: Project, experts: list[str]) -> None:
    said = fuse(project, "--base=base-0.safetensors", *experts, "--mode=iterative", "--each", "--report=fidelity.json")
    for part in ("fidelity of version 2, iterative", "bits lost", "peak memory", "relative error"):
        assert part in said
    first, second = json.loads((project.folder / "fidelity.json").read_text())
    assert [task["task"] for task in second["tasks"]] == ["a", "b"]
    assert first["tasks"][0]["cosine"] == pytest.approx(1.0, abs=1e-6)
    assert 0.5 < second["tasks"][0]["cosine"] < 1
    assert second["tasks"][0]["bits_lost"] > 0
    for version in (1, 2):
        assert (project.folder / f"fidelity-v{version}.png").read_bytes().startswith(b"\x89PNG")


def test_a_store_is_fused_anew_in_another_mode_from_its_archive(project: Project, experts: list[str]) -> None:
    fuse(project, "--base=base-0.safetensors", *experts, "--mode=iterative", "--archive=float16")
    assert "fused a, b (joint)" in fuse(project, "--from-archive", "--mode=joint", "--scales=row")
    assert "fused a, b (signed)" in fuse(project, "--from-archive", "--mode=signed", "--bits=4")
    versions = Versions(open_store(str(project.folder / "plain")))
    assert [versions.read(n).mode["name"] for n in (1, 2, 3)] == ["iterative", "joint", "signed"]
    out = project.folder / "a.safetensors"
    done = project.condu_here("export", "--store", project.folder / "plain", "--task=a", out)
    assert done.returncode == 0, done.stderr
    exported, expert, base = (load_file(project.folder / f"{name}.safetensors") for name in ("a", "a-0", "base-0"))
    for name in ("visual.conv.weight", "text.proj"):
        error = np.linalg.norm(exported[name] - expert[name]) / np.linalg.norm(expert[name] - base[name])
        assert error < 0.2, name
    assert set(exported) >= set(SHAPES)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "there is no expert to fuse: name each with --expert"),
        (("--from-archive", "--replace"), "--from-archive rebuilds what the store has"),
        (
            ("--scales=row", "--expert=a=x"),
            "--scales row has no effect in mode lowrank: it belongs to iterative and joint",
        ),
        (("--mode=iterative", "--bits=2", "--expert=a=x"), "--bits 2 has no effect in mode iterative"),
        (("--mode=joint", "--scales=column", "--expert=a=x"), "it must be 'task', 'tensor' or 'row'"),
        (("--mode=median", "--expert=a=x"), "fusion mode 'median' is unknown"),
        (("--archive=int8", "--base=base-0.safetensors", "--expert=a=a-0.safetensors"), "--archive 'int8' is unknown"),
        (("--device=cuda:99", "--base=base-0.safetensors", "--expert=a=a-0.safetensors"), "can't be used"),
    ],
    ids=str,
)
def test_options_that_contradict_are_refused(
    arguments: tuple[str, ...], says: str, project: Project, experts: list[str]
) -> None:
    refused(project, "fuse", "--store", project.folder / "plain", *arguments, code=2, says=says)
    assert Versions(open_store(str(project.folder / "plain"))).newest() is None


def test_fusing_anew_nothing_says_so(project: Project) -> None:
    refused(project, "fuse", "--store", "empty", "--from-archive", code=1, says="nothing was published")


@pytest.mark.processes
def test_fusing_needs_neither_torch_nor_ray(project: Project, experts: list[str]) -> None:
    """They take seconds to import, many times what fusing a small model takes."""
    code = (
        "import sys; from cluster.cli import app; app(standalone_mode=False); "
        "print(sorted({'torch', 'ray', 'boto3', 'open_clip', 'matplotlib'} & set(sys.modules)))"
    )
    line = ["fuse", "--store", "plain", "--base", "base-0.safetensors", *experts, "--mode", "iterative"]
    command = [sys.executable, "-c", code, *line]
    env = {**project.env, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=project.folder, env=env, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stdout
