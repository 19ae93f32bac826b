"""A disk that is really full, wherever fusing and reading write: it is named, nothing is half done, and space helps."""

from __future__ import annotations

import resource
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fusion.decouple import decoupled_tensors
from fusion.errors import ConduError, DiskError, StoreAccessError
from fusion.fuse import fuse_experts
from fusion.store import Store, open_store
from fusion.store.node_cache import NodeCache
from fusion.tensors import TensorSpec, TensorWriter
from fusion.versions.bases import put_base
from fusion.versions.history import Versions, manifest_key
from tests.fusion.faults import keys, read_whole
from tests.fusion.vectors import random_base, random_expert
from tests.plugins.disk import SmallDisk
from tests.processes import ended, start

MODES: list[dict[str, Any]] = [{"name": "iterative"}, {"name": "joint"}, {"name": "signed", "bits": 2}]


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode["name"])
def test_fusing_into_a_full_store_publishes_nothing_wherever_space_runs_out(
    mode: dict[str, Any], small_disk: SmallDisk, tmp_path: Path
) -> None:
    store = open_store(str(small_disk.folder / "store"))
    base, path = random_base(tmp_path, store)
    cache = NodeCache(store, tmp_path / "cache")
    fuse_experts(cache, base, [random_expert(tmp_path, path, "before", seed=1)], mode=mode)
    newest, before = Versions(store).newest(), keys(store, "blobs/")
    expert = random_expert(tmp_path, path, "after", seed=2)
    errors: list[str] = []
    while True:
        small_disk.fill(leave_pages=len(errors))  # one page more each time: each write is once the first to fail
        try:
            fuse_experts(cache, base, [expert], mode=mode)
            break
        except (DiskError, StoreAccessError) as error:
            errors.append(str(error))
        assert Versions(store).newest() == newest
        if manifest_key(2) in errors[-1]:  # an error of the commit itself keeps its blobs: it may have happened
            before = keys(store, "blobs/")
        assert keys(store, "blobs/") == before
        assert not list(store.scratch.iterdir()), "no temporary file takes up the remaining space"
    assert len(errors) >= 3
    assert any(manifest_key(2) in message for message in errors), "space also ran out at the commit"
    for message in errors:
        assert str(small_disk.folder / "store") in message
        assert "the disk is full: free space there, then run it again" in message
    version = Versions(store).newest()
    assert version is not None
    assert version.version == 2
    assert set(read_whole(store, tmp_path, version)) == {"before", "after"}


def test_a_base_without_space_is_not_half_there(small_disk: SmallDisk, tmp_path: Path) -> None:
    elsewhere = open_store(str(tmp_path / "elsewhere"))
    _, path = random_base(tmp_path, elsewhere)
    store = open_store(str(small_disk.folder / "store"))
    small_disk.fill()
    with pytest.raises(StoreAccessError, match=rf"{store.url}/bases/.*the disk is full"):
        put_base(store, path)
    assert keys(store) == set()
    small_disk.clear()
    base = put_base(store, path)
    assert keys(store) == {base.weights.key, f"bases/{base.sha256}.json"}


def published_on_s3(url: str, folder: Path) -> Store:
    store = open_store(url)
    base, path = random_base(folder, store)
    cache = NodeCache(store, folder / "cache")
    fuse_experts(cache, base, [random_expert(folder, path, "pets", seed=1)], mode=MODES[-1])
    return store


def test_a_full_node_cache_is_reported_and_keeps_no_part_of_a_download(
    s3_url: str, small_disk: SmallDisk, tmp_path: Path
) -> None:
    store = published_on_s3(s3_url, tmp_path)
    manifest = Versions(store).read(1)
    folder = small_disk.folder / "cache"
    cache = NodeCache(store, folder)
    small_disk.fill()
    with pytest.raises(DiskError, match=rf"can't write {folder}/.*the disk is full"):
        dict(decoupled_tensors(cache, manifest, "pets"))
    assert [path for path in folder.rglob("*") if path.is_file()] == []
    small_disk.clear()
    assert dict(decoupled_tensors(cache, manifest, "pets"))


def test_a_full_folder_for_temporary_files_is_reported_and_publishes_nothing_to_s3(
    s3_url: str, small_disk: SmallDisk, tmp_path: Path
) -> None:
    published_on_s3(s3_url, tmp_path)
    scratch = small_disk.folder / "scratch"
    scratch.mkdir()
    small_disk.fill()
    assert ended(start(fuse_without_room_for_scratch, s3_url, tmp_path, scratch, small_disk)) == 0


def fuse_without_room_for_scratch(url: str, folder: Path, scratch: Path, disk: SmallDisk) -> None:
    """In a process of its own: the S3 store creates its scratch folder once per process."""
    tempfile.tempdir = str(scratch)  # set explicitly: a search by trial would skip a full disk
    store = open_store(url)
    base, path = random_base(folder, store)
    expert = random_expert(folder, path, "flags", seed=2)
    before = keys(store)
    with pytest.raises(DiskError, match=rf"can't write {scratch}/.*the disk is full"):
        fuse_experts(NodeCache(store, folder / "cache"), base, [expert], mode=MODES[-1])
    assert keys(store) == before
    disk.clear()
    assert fuse_experts(NodeCache(store, folder / "cache"), base, [expert], mode=MODES[-1]).manifest.version == 2


@pytest.mark.processes
@pytest.mark.parametrize("num_bytes", [0, 100, 1000])
def test_a_limit_on_the_size_of_files_is_reported_like_a_full_disk(num_bytes: int, tmp_path: Path) -> None:
    assert ended(start(write_under_a_limit, tmp_path, num_bytes)) == 0


def write_under_a_limit(folder: Path, num_bytes: int) -> None:
    """In a process of its own: the kernel answers EFBIG beyond the limit."""
    store = open_store(str(folder / "store"))
    base, path = random_base(folder, store)
    expert = random_expert(folder, path, "pets", seed=1)
    before = keys(store)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, resource.RLIM_INFINITY))
    with pytest.raises(ConduError, match=rf"{folder}/store.*File too large.*raise `ulimit -f`"):
        fuse_experts(NodeCache(store, folder / "cache"), base, [expert], mode=MODES[-1])
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert keys(store) == before
    assert not list(store.scratch.iterdir())
    assert fuse_experts(NodeCache(store, folder / "cache"), base, [expert], mode=MODES[-1]).manifest.version == 1


def test_a_file_of_tensors_without_space_is_removed(small_disk: SmallDisk) -> None:
    path = small_disk.folder / "out.safetensors"
    for leave_pages in (0, 1):  # no space for the header, none for the tensor
        small_disk.fill(leave_pages=leave_pages)
        with pytest.raises(DiskError, match=f"can't write {path}"):
            _write(path)
        assert not path.exists()
    small_disk.clear()
    _write(path)
    assert path.is_file()


def _write(path: Path) -> None:
    writer = TensorWriter(path, {"x": TensorSpec("F32", (5000,))})
    try:
        writer.write("x", np.ones(5000, np.float32))
    except BaseException:
        writer.abandon()
        raise
    writer.finish()
