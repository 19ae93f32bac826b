"""The container image: linted, its context holds what it copies, and its entry point knows condu's commands."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.cli import _COMMANDS

ROOT = Path(__file__).resolve().parents[3]
DEPLOY = ROOT / "cluster" / "deploy"
DOCKERFILE = DEPLOY / "Dockerfile"


def lint(path: Path) -> subprocess.CompletedProcess[str]:
    hadolint = Path(sys.executable).parent / "hadolint"
    return subprocess.run([hadolint, "--no-color", path], capture_output=True, text=True)


@pytest.mark.processes
def test_the_dockerfile_has_no_finding() -> None:
    done = lint(DOCKERFILE)
    assert done.returncode == 0, done.stdout


@pytest.mark.processes
@pytest.mark.parametrize(("right", "typo"), [("WORKDIR", "WORKDIRR"), ("--from=packages", "--from=package"),
                                             ('ENTRYPOINT ["tini"', "ENTRYPOINT [tini")])  # fmt: skip
def test_a_typo_in_the_dockerfile_is_found(tmp_path: Path, right: str, typo: str) -> None:
    text = DOCKERFILE.read_text()
    assert right in text
    (tmp_path / "Dockerfile").write_text(text.replace(right, typo))
    stages = re.findall(r"^FROM \S+ AS (\w+)$", text, re.MULTILINE)
    sources = re.findall(r"--from=(\S+)", (tmp_path / "Dockerfile").read_text())
    assert lint(tmp_path / "Dockerfile").returncode != 0 or not set(sources) <= set(stages)


def test_everything_that_the_image_copies_exists_and_is_in_the_build_context() -> None:
    text = DOCKERFILE.read_text()
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    allowed = {line[1:] for line in lines if line.startswith("!")}
    assert "*" in lines, "what is not named is left out"
    for path in allowed:
        assert (ROOT / path).exists(), path
    for copied in re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.MULTILINE):
        for source in copied.split():
            assert source == "." or ((ROOT / source).exists() and source.split("/")[0] in allowed), source
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests", "benchmarks"}
    assert packages <= allowed


def test_the_image_runs_as_nobody_s_root_and_is_pinned_by_the_constraints() -> None:
    text = DOCKERFILE.read_text()
    final = text.rpartition("FROM ")[2]
    assert "USER 1000:1000" in final
    assert final.index("USER 1000:1000") < final.index("python -m fusion.kernels"), "its user can write to the cache"
    assert "HEALTHCHECK" in final
    assert "--constraint constraints.txt" in text


@pytest.mark.processes
def test_the_image_tells_serve_s_proxies_of_the_second_try() -> None:
    name = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
    path = re.search(rf"{name}=(\S+)", DOCKERFILE.read_text())
    assert path is not None
    code = (
        "from ray.serve._private.constants import RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH as path\n"
        "from ray.serve._private.utils import call_function_from_import_path\n"
        "print(len(call_function_from_import_path(path)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env={**os.environ, name: path[1]}, capture_output=True, text=True
    )
    assert done.stdout == "1\n", done.stderr


@pytest.mark.processes
def test_the_entry_point_runs_condu_s_commands_and_any_other_program(tmp_path: Path) -> None:
    for name in ("condu", "ray", "serve"):
        fake = tmp_path / name
        fake.write_text(f'#!/bin/sh\necho {name} "$@"\n')
        fake.chmod(0o755)
    env = {"PATH": f"{tmp_path}{os.pathsep}{os.path.dirname(shutil.which('sh') or '/bin/sh')}"}

    def told(*arguments: str) -> str:
        done = subprocess.run([DEPLOY / "entrypoint.sh", *arguments], env=env, capture_output=True, text=True)
        return done.stdout.strip()

    for command in _COMMANDS:
        assert told(command, "a.yaml") == f"condu {command} a.yaml"
    assert told() == "condu"
    assert told("--version") == "condu --version"
    assert told("ray", "start", "--head") == "ray start --head"
