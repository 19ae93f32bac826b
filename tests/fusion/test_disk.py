"""Files that are replaced in one step: whole, with the right permissions, and nothing left behind."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from fusion.disk import replace_file, replacing


def test_a_file_is_replaced_by_a_whole_one(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    for content in (b"old", b"new"):
        replace_file(path, content)
        assert path.read_bytes() == content
        assert list(tmp_path.iterdir()) == [path]


def test_readers_see_the_old_file_until_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_bytes(b"old")
    with replacing(path) as temporary:
        temporary.write_bytes(b"a part of it")
        assert path.read_bytes() == b"old"
        temporary.write_bytes(b"all of it")
    assert path.read_bytes() == b"all of it"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_block_that_fails_changes_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "report.json"
    path.write_bytes(b"old")

    def fail() -> None:
        with replacing(path) as temporary:
            temporary.write_bytes(b"half")
            raise error

    with pytest.raises(error):
        fail()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_not_there_is_an_oserror(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        replace_file(tmp_path / "nowhere" / "report.json", b"")


def test_permissions_follow_the_umask_or_are_as_asked(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        replace_file(tmp_path / "shared", b"")
        with replacing(tmp_path / "private", mode=0o600) as temporary:
            assert stat.S_IMODE(temporary.stat().st_mode) == 0o600, "from the first byte on"
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "shared").stat().st_mode) == 0o640
    assert stat.S_IMODE((tmp_path / "private").stat().st_mode) == 0o600
