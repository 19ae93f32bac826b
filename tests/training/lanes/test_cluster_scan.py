"""Many files are read by tasks on all nodes, to the same contents as in one process."""

from __future__ import annotations

from pathlib import Path

import pytest

from fusion.errors import DataError
from fusion.store.address import StoreAddress
from tests.tiny import tiny_parquet, tiny_task
from training.data.contents import Unread
from training.data.files import LocalFile
from training.data.scan import scan_here
from training.data.task_data import Reading, load_task_data
from training.lanes import cluster_scan
from training.lanes.cluster_scan import scan_on_cluster

pytestmark = pytest.mark.usefixtures("ray_session")


@pytest.fixture(autouse=True)
def many(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few files count as many, in chunks of two."""
    monkeypatch.setattr("training.lanes.cluster_scan._FEW_FILES", 0)
    monkeypatch.setattr("training.data.scan._CHUNK_FILES", 2)


def test_tasks_find_what_one_process_finds_and_name_what_is_broken(tmp_path: Path) -> None:
    folders = tiny_task(tmp_path / "folders", num_train=3, num_test=1)
    for source in (folders, tiny_parquet(tmp_path / "table", folders)):
        address = StoreAddress((tmp_path / f"store-{Path(source).name}").as_uri())
        spread = load_task_data("t", source, Reading(address, scan=scan_on_cluster))
        alone = load_task_data("t", source)
        assert spread.sha256 == alone.sha256
        assert list(spread.test.samples) == list(alone.test.samples)
    (Path(folders) / "train/green/001.png").write_bytes(b"not an image")
    (Path(folders) / "test/red/000.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"train/green/001\.png is not an image.*test/red/000\.png is empty"):
        load_task_data("t", folders, Reading(scan=scan_on_cluster))


def test_a_busy_cluster_leaves_the_reading_to_this_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_scan, "_TASK_CPUS", 1000.0)  # never free
    monkeypatch.setattr(cluster_scan, "_PATIENCE_S", 0.05)
    source = tiny_task(tmp_path / "folders", num_train=2, num_test=1)
    assert load_task_data("t", source, Reading(scan=scan_on_cluster)).sha256 == load_task_data("t", source).sha256


def test_a_file_that_only_this_node_has_is_read_here(tmp_path: Path) -> None:
    class HereAlone(LocalFile):
        """Lost on its way to another process."""

        def __reduce__(self) -> tuple[type[LocalFile], tuple[str, int, int]]:
            return LocalFile, ("/nowhere", 0, 0)

    path = next(Path(tiny_task(tmp_path / "t", num_train=1)).rglob("*.png"))
    chunk = [Unread("a.png", "a.png", HereAlone(str(path), path.stat().st_size, 0))]
    ((number, found),) = scan_on_cluster([chunk], True)
    ((_, wanted),) = scan_here([chunk], True)
    assert (number, found.to_pylist()) == (0, wanted.to_pylist())
