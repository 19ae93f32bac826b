"""What a run has read of a data set is not read again: the index that a store keeps.

Whether a file is read shows by what is done to it behind the index's back: its bytes are replaced, its size and time
are put back.
"""

from __future__ import annotations

import json
import os
import tarfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fusion.errors import DataError
from fusion.store import open_store
from fusion.store.address import StoreAddress
from tests.tiny import tiny_parquet, tiny_task
from training.data.contents import Columns
from training.data.files import ObjectFile
from training.data.index import DataIndex
from training.data.sources import absolute_source
from training.data.task_data import Reading, TaskData, load_task_data


def settle(folder: Path) -> None:
    """As if all files had been written an hour ago."""
    for path in folder.rglob("*"):
        if path.is_file():
            os.utime(path, (time.time() - 3600,) * 2)


def spoil(path: Path) -> None:
    """Other bytes, of the same size and time."""
    before = path.stat()
    path.write_bytes(b"\xff" * before.st_size)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def class_folders(folder: Path) -> Path:
    return Path(tiny_task(folder, num_train=4, num_test=2))


def without_suffixes(folder: Path) -> Path:
    for path in class_folders(folder).rglob("*.png"):
        path.rename(path.with_suffix(""))
    return folder


def table(folder: Path) -> Path:
    return Path(tiny_parquet(folder, str(class_folders(folder.parent / "folders"))))


def outside(folder: Path) -> Path:
    """Parquet whose rows name files beside it."""
    source, kind = class_folders(folder.parent / "folders"), pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    for split in ("train", "test"):
        rows = []
        for image in sorted((source / split).rglob("*.png")):
            (folder / "images").mkdir(parents=True, exist_ok=True)
            name = f"images/{split}-{image.parent.name}-{image.name}"
            (folder / name).write_bytes(image.read_bytes())
            rows.append(({"bytes": None, "path": name}, image.parent.name))
        images = pa.array([image for image, _ in rows], kind)
        pq.write_table(pa.table({"image": images, "label": [name for _, name in rows]}), folder / f"{split}.parquet")
    (folder / "task.json").write_text((source / "task.json").read_text())
    return folder


def shards(folder: Path) -> Path:
    source = class_folders(folder.parent / "folders")
    folder.mkdir()
    names = json.loads((source / "task.json").read_text())["classes"]
    for split in ("train", "test"):
        with tarfile.open(folder / f"{split}-0000.tar", "w") as archive:
            for number, image in enumerate(sorted((source / split).rglob("*.png"))):
                label = folder / "label"
                label.write_text(str(names.index(image.parent.name)))
                archive.add(image, f"{number:04d}.png")
                archive.add(label, f"{number:04d}.cls")
    label.unlink()
    (folder / "task.json").write_text((source / "task.json").read_text())
    return folder


def listed(folder: Path) -> Path:
    source = class_folders(folder)
    for split in ("train", "test"):
        rows = [f"{path.relative_to(source)},{path.parent.name}" for path in sorted((source / split).rglob("*.png"))]
        (source / f"{split}.csv").write_text("path,label\n" + "\n".join(rows))
    return source


LAYOUTS = (class_folders, without_suffixes, table, outside, shards, listed)


class Site:
    """A data set and a store."""

    def __init__(self, folder: Path, make: Callable[[Path], Path] = class_folders, store: str | None = None) -> None:
        self.source = make(folder / "data")
        settle(self.source)
        self.address = StoreAddress(store or (folder / "store").as_uri())

    def load(self, **how: bool) -> TaskData:
        return load_task_data("t", str(self.source), Reading(self.address, **how))

    def index(self) -> DataIndex:
        return DataIndex(self.address.open(), absolute_source(str(self.source)), Columns())

    def index_keys(self) -> list[str]:
        return [info.key for info in self.address.open().list("data/")]

    def images(self) -> list[Path]:
        """All files of the data set but tables of paths and `task.json`."""
        files = [path for path in self.source.rglob("*") if path.is_file()]
        return sorted(path for path in files if path.suffix not in (".json", ".csv"))


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


@pytest.mark.parametrize("make", LAYOUTS)
def test_a_second_look_reads_no_image(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    site = Site(tmp_path, make)
    plain = load_task_data("t", str(site.source))
    first = site.load()
    assert first.sha256 == plain.sha256
    for path in site.images():
        spoil(path)
    second = site.load()
    assert (second.sha256, second.summary()) == (first.sha256, first.summary())
    for one, other in ((first.train, second.train), (first.test, second.test)):
        assert list(one.samples) == list(other.samples)
    assert site.load(verify=False).sha256 == first.sha256, "nor does a worker's"


@pytest.mark.parametrize("make", LAYOUTS)
def test_all_is_read_again_when_that_is_asked_for(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    site = Site(tmp_path, make)
    site.load()
    spoil(site.images()[-1])
    try:
        said = site.load(refresh=True).summary()
    except DataError as error:
        said = str(error)
    assert site.images()[-1].relative_to(site.source).as_posix() in said


def test_of_changed_files_only_those_are_read(site: Site) -> None:
    first = site.load()
    changed, *others = site.images()
    changed.write_bytes((site.source / "train/blue/000.png").read_bytes())
    os.utime(changed, (time.time() - 60,) * 2)
    for path in others:
        spoil(path)
    second = site.load()
    before, after = ({sample.sha256 for sample in data.test.samples} for data in (first, second))
    assert len(after - before) == 1
    spoil(changed)
    assert site.load().sha256 == second.sha256, "the changed file is known now, and so are the others"


def test_a_file_that_may_still_be_written_is_not_trusted(site: Site) -> None:
    site.load()
    image = site.images()[-1]
    os.utime(image)
    site.load()
    spoil(image)
    with pytest.raises(DataError, match=image.name):
        site.load()


def test_a_damaged_index_is_said_and_made_anew(site: Site) -> None:
    first = site.load()
    (key,) = site.index_keys()
    path = site.address.open().local_path(key)
    assert path is not None
    path.chmod(0o600)
    path.write_bytes(path.read_bytes()[:-9] + b"otherwise")
    again = site.load()
    assert "the index of these files was damaged: all were read again" in again.summary()
    for image in site.images():
        spoil(image)
    third = site.load()
    assert third.sha256 == first.sha256
    assert "damaged" not in third.summary()


def test_runs_that_write_at_once_leave_an_index(site: Site) -> None:
    with ThreadPoolExecutor(8) as pool:
        assert len({data.sha256 for data in pool.map(lambda _: site.load(), range(16))}) == 1
    for image in site.images():
        spoil(image)
    site.load()
    settled = site.index_keys()
    site.load()
    assert site.index_keys() == settled, "what adds nothing writes nothing"


def test_an_older_index_goes_when_a_newer_one_is_there(site: Site) -> None:
    site.load()
    for number in range(3):
        (site.source / f"train/blue/{number}-new.png").write_bytes((site.source / "test/red/000.png").read_bytes())
        settle(site.source)
        site.load()
    (key,) = site.index_keys()
    assert key.rpartition("/")[2].startswith("00000004-")


def test_files_that_are_gone_are_forgotten(site: Site) -> None:
    site.load()
    removed, touched, *_ = site.images()
    removed.unlink()
    os.utime(touched, (time.time() - 60,) * 2)
    site.load()
    known, _ = site.index().read()
    assert set(known["path"].to_pylist()) == {path.relative_to(site.source).as_posix() for path in site.images()}


def test_a_broken_image_is_named_again_without_being_read_until_it_changes(site: Site) -> None:
    whole = (site.source / "train/red/001.png").read_bytes()
    (site.source / "train/red/001.png").write_bytes(whole[:100])
    settle(site.source)
    for _ in range(2):
        with pytest.raises(DataError, match=r"train/red/001\.png is damaged"):
            site.load()
    (site.source / "train/red/001.png").write_bytes(whole)
    os.utime(site.source / "train/red/001.png", (time.time() - 60,) * 2)
    assert len(site.load().train) == 16


def test_another_decoder_looks_again_at_what_was_broken(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = site.source / "train/red/001.png"
    whole = broken.read_bytes()
    broken.write_bytes(b"\0" * len(whole))
    settle(site.source)
    with pytest.raises(DataError, match="is not an image"):
        site.load()
    before = broken.stat()
    broken.write_bytes(whole)
    os.utime(broken, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(DataError, match="is not an image"):
        site.load()
    monkeypatch.setattr("PIL.__version__", "0")
    for image in site.images():
        if image != broken:
            spoil(image)
    assert len(site.load().train) == 16


def test_an_image_that_is_not_what_it_was_does_not_train(site: Site) -> None:
    data = site.load()
    spoil(Path(data.train.origin(3)))
    with pytest.raises(DataError, match=r"\.png has changed since it was read for the first time: run again, with --v"):
        data.train.image(3)


def test_what_is_not_verified_is_not_remembered(site: Site) -> None:
    site.load(verify=False)
    assert site.index_keys() == []


def test_a_store_that_takes_no_index_costs_only_time(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    (site.source.parent / "store").mkdir()
    (site.source.parent / "store" / "data").write_text("a file where a folder should be")
    assert len(site.load().train) == 16
    assert "was not saved, so the next run reads its files again" in caplog.text


def test_columns_have_an_index_each(tmp_path: Path) -> None:
    site = Site(tmp_path, table)
    for split in ("train", "test"):
        rows = pq.read_table(site.source / f"{split}.parquet")
        rows = rows.append_column("img", rows["image"].take(list(range(len(rows)))[::-1]))
        pq.write_table(rows, site.source / f"{split}.parquet")
    settle(site.source)
    one, other = (
        load_task_data("t", str(site.source), Reading(site.address), image_column=name) for name in ("image", "img")
    )
    assert one.sha256 != other.sha256
    assert len(site.index_keys()) == 2


@pytest.mark.s3
def test_objects_of_a_bucket_are_known_by_their_etags(
    tmp_path: Path, s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = Site(tmp_path, class_folders, store=f"{s3_url}/store")
    bucket = open_store(f"{s3_url}/images")
    for path in site.source.rglob("*.png"):
        bucket.put_if_absent(path.relative_to(site.source).as_posix(), path.read_bytes())
    first = load_task_data("t", f"{s3_url}/images", Reading(site.address))
    key = "train/red/000.png"
    other = (site.source / "train/red/001.png").read_bytes()
    bucket.delete(key)
    bucket.put_if_absent(key, other)
    read: list[str] = []
    whole = ObjectFile.read

    def noted(file: ObjectFile, start: int = 0, stop: int | None = None) -> bytes:
        read.append(file._key)
        return whole(file, start, stop)

    monkeypatch.setattr(ObjectFile, "read", noted)
    second = load_task_data("t", f"{s3_url}/images", Reading(site.address))
    assert read == [key]
    assert second.sha256 != first.sha256
