"""Replacing a file in one step, and disks without room."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from fusion.disk import replace_file, replacing
from tests.plugins.disk import SmallDisk

ROOT = Path(__file__).resolve().parents[2]


def test_readers_see_the_old_file_until_the_new_one_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
        assert temporary.parent == tmp_path
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == [path.name]


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")

    def fail() -> None:
        with replacing(path) as temporary:
            temporary.write_text("new, half writ")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize(("private", "mode"), [(True, 0o600), (False, 0o640)])
def test_a_private_file_is_never_readable_by_others(tmp_path: Path, private: bool, mode: int) -> None:
    before = os.umask(0o027)
    try:
        with replacing(tmp_path / "file", private=private) as temporary:
            assert stat.S_IMODE(temporary.stat().st_mode) == mode
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == mode


def test_a_folder_that_is_missing_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "none" / "file"):
        pass


def test_a_file_is_replaced_by_its_new_content(tmp_path: Path) -> None:
    for content in (b"old", b"new"):
        replace_file(tmp_path / "report.json", content)
        assert (tmp_path / "report.json").read_bytes() == content
        assert os.listdir(tmp_path) == ["report.json"]


def test_kernels_that_cannot_be_kept_are_an_error_that_names_the_folder(small_disk: SmallDisk) -> None:
    small_disk.fill()
    code = "from fusion.kernels import load_kernels; load_kernels()"
    env = {**os.environ, "NUMBA_CACHE_DIR": str(small_disk.folder)}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True)
    assert "DiskError: the compiled kernels can't be kept" in done.stderr
    assert "NUMBA_CACHE_DIR" in done.stderr
