"""`condu fuse` and `condu export` on a full disk: one message, exit code 1, and with room the same command succeeds."""

from __future__ import annotations

from pathlib import Path

from fusion.store import open_store
from fusion.versions.history import Versions
from tests.e2e.project import Project
from tests.e2e.test_mistakes import refused
from tests.golden import Golden
from tests.plugins.disk import PAGE_BYTES, SmallDisk


def test_fuse_on_a_full_disk_says_so_and_the_same_command_then_publishes(
    bare: Project, small_disk: SmallDisk, tmp_path: Path
) -> None:
    base, experts = Golden("iterative_t2").write(tmp_path)
    store = small_disk.folder / "store"
    command = ("fuse", "--store", store, "--base", base, "--expert", f"a={experts[0]}")
    for leave_pages in (0, base.stat().st_size // PAGE_BYTES + 3):  # none for the base, none for the blobs
        small_disk.fill(leave_pages=leave_pages)
        refused(bare, *command, code=1, says="the disk is full: free space there, then run it again")
        assert Versions(open_store(str(store))).newest() is None
    small_disk.clear()
    assert bare.condu_here(*command).returncode == 0
    assert Versions(open_store(str(store))).newest_number() == 1


def test_export_onto_a_full_disk_says_so_and_leaves_no_file(
    bare: Project, small_disk: SmallDisk, tmp_path: Path
) -> None:
    base, experts = Golden("iterative_t2").write(tmp_path)
    store = tmp_path / "store"
    assert bare.condu_here("fuse", "--store", store, "--base", base, "--expert", f"a={experts[0]}").returncode == 0
    out = small_disk.folder / "out.safetensors"
    command = ("export", "--store", store, "--task", "a", out)
    for leave_pages in (0, 1):
        small_disk.fill(leave_pages=leave_pages)
        refused(bare, *command, code=1, says="the disk is full: free space there, then run it again")
        assert [path.name for path in small_disk.folder.iterdir()] == ["filler"]
    refused(bare, *command[:-1], small_disk.folder, code=2, says="is a folder: name the file to write")
    small_disk.clear()
    assert bare.condu_here(*command).returncode == 0
    assert [path.name for path in small_disk.folder.iterdir()] == ["out.safetensors"]
