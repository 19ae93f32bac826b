"""The container image, really built and run: `condu doctor` and `condu demo --quick` in it, as the user that it has.

Debian's `buildah` builds it, and a root that `debootstrap` makes stands for the base image, so neither a registry of
images nor a daemon is needed. Packages are downloaded outside, as this machine is set up to do, and given to the build
as a folder. Needs root, the two programs, and 35 GB of disk for a while.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.soak.machines import SOURCE
from tests.soak.results import Results

pytestmark = [pytest.mark.soak, pytest.mark.processes]

_ENOUGH_BYTES = 35 << 30
_SUITE, _MIRROR = "bookworm", "http://deb.debian.org/debian"
_PYTHON = "python3,python3-venv,python-is-python3,ca-certificates"
"""What `python:3.11-slim-bookworm` has and the build uses."""
_WHEELS = "/mnt/wheels"
_PIP = f"[global]\nno-index = true\nfind-links = {_WHEELS}\n"


class Builder:
    """`buildah` with storage of its own in `folder`: layers are copies, so nothing of the kernel is asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._env = {**os.environ, "STORAGE_DRIVER": "vfs", "BUILDAH_ISOLATION": "chroot"}

    def __call__(self, *arguments: str | Path, timeout_s: float = 1200) -> str:
        """What it prints. Fails with all that it said."""
        storage = ["--root", self.folder / "storage", "--runroot", self.folder / "run"]
        done = subprocess.run(
            ["buildah", *storage, *arguments], env=self._env, capture_output=True, text=True, timeout=timeout_s
        )
        assert done.returncode == 0, f"{arguments}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
        return done.stdout.strip()


@pytest.fixture(scope="module")
def builder() -> Iterator[Builder]:
    folder = Path(tempfile.mkdtemp(prefix="condu-image-"))
    try:
        if os.getuid():
            pytest.skip("an image is built by root here")
        for program in ("buildah", "debootstrap"):
            if shutil.which(program) is None:
                pytest.skip(f"no {program}: as root, apt-get install buildah debootstrap")
        if (free := shutil.disk_usage(folder).free) < _ENOUGH_BYTES:
            pytest.skip(f"building the image takes {_ENOUGH_BYTES >> 30} GB of disk for a while; {free >> 30} are free")
        builder = Builder(folder)
        try:
            builder("rm", builder("from", "scratch"))
        except AssertionError as refused:
            pytest.skip(f"buildah can't work here: {str(refused)[-300:]}")
        yield builder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def container(builder: Builder, results: Results) -> str:
    """A container of the image, built from the working tree."""
    began = time.monotonic()
    _make_base(builder)
    results.add("image", "base image", seconds=time.monotonic() - began, how="debootstrap, bookworm, Python 3.11")
    began = time.monotonic()
    wheels = _download(builder.folder / "wheels")
    size = sum(path.stat().st_size for path in wheels.iterdir())
    results.add("image", "packages", seconds=time.monotonic() - began, how=f"{size / 1e9:.1f} GB downloaded")
    (builder.folder / "pip.conf").write_text(_PIP)
    began = time.monotonic()
    builder(
        "bud", "--format", "docker", "--pull-never", "--file", SOURCE / "cluster" / "deploy" / "Dockerfile",
        "--build-arg", "BASE=localhost/condu-base", "--volume", f"{wheels}:{_WHEELS}:ro",
        "--volume", f"{builder.folder / 'pip.conf'}:/etc/pip.conf:ro", "--tag", "condu", SOURCE,
    )  # fmt: skip
    shutil.rmtree(wheels)
    sizes = dict(line.split(maxsplit=1) for line in builder("images", "--format", "{{.Name}} {{.Size}}").splitlines())
    how = f"{sizes['localhost/condu']}, with CUDA's libraries"
    results.add("image", "build", seconds=time.monotonic() - began, how=how)
    return builder("from", "--pull-never", "localhost/condu")


def test_it_runs_as_its_own_user_with_what_the_constraints_pin(builder: Builder, container: str) -> None:
    assert builder("run", container, "--", "id", "-u") == "1000"
    installed = _versions(builder("run", container, "--", "pip", "freeze"))
    pinned = _versions((SOURCE / "constraints.txt").read_text())
    assert {name: version for name, version in installed.items() if pinned.get(name, version) != version} == {}
    assert "torch" in installed
    assert builder("run", container, "--", "condu", "--version").startswith("condu ")


def test_the_doctor_finds_nothing_wrong_in_it(builder: Builder, container: str, results: Results) -> None:
    results.begin("image", "condu doctor")
    began = time.monotonic()
    told = builder("run", container, "--", "tini", "--", "condu-entrypoint", "doctor", "--store", "/tmp/store")
    results.add("image", "condu doctor", seconds=time.monotonic() - began, how=told.splitlines()[-1].strip())


def test_it_trains_fuses_and_answers_in_a_minute_or_two(builder: Builder, container: str, results: Results) -> None:
    results.begin("image", "condu demo --quick")
    began = time.monotonic()
    told = builder("run", container, "--", "tini", "--", "condu-entrypoint", "demo", "--quick")
    results.add("image", "condu demo --quick", seconds=time.monotonic() - began, how=told.splitlines()[-1].strip())
    assert "trains, fuses, measures and answers" in told


def _make_base(builder: Builder) -> None:
    root = builder.folder / "root"
    done = subprocess.run(
        ["debootstrap", "--variant=minbase", f"--include={_PYTHON}", _SUITE, root, _MIRROR],
        capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        pytest.skip(f"debootstrap can't make a root here: {(done.stderr or done.stdout)[-300:]}")
    base = builder("from", "scratch")
    builder("add", "--quiet", base, root, "/")
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    builder("config", "--env", f"PATH={path}", base)
    builder("commit", "--quiet", "--rm", base, "condu-base")
    shutil.rmtree(root)


def _download(folder: Path) -> Path:
    """The wheels that the image's dependencies and its own build need."""
    project = tomllib.loads((SOURCE / "pyproject.toml").read_text())
    wanted = [*project["project"]["dependencies"], *project["build-system"]["requires"]]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--only-binary", ":all:", "--dest", folder]
    done = subprocess.run(
        [*command, "--constraint", SOURCE / "constraints.txt", *wanted], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def _versions(text: str) -> dict[str, str]:
    return dict(line.split("==") for line in text.splitlines() if "==" in line)
