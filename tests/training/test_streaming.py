"""Data that is too large for memory: read in blocks, shuffled in windows, trained to the same weights after a kill."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from fusion.errors import DataError
from fusion.store import open_store
from fusion.versions.experts import find_expert, survey_experts
from tests.tiny import COLOURS, tiny_parquet, tiny_task
from training import samplers
from training.data import blocks, images, look
from training.data.task_data import Reading, TaskData, load_task_data
from training.samplers import WindowSampler

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is kept; a block has about three of the test's images, a window three blocks."""
    monkeypatch.setattr(images, "KEPT_BYTES", 0)
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 8 << 10)
    monkeypatch.setattr(blocks, "_ASKED_FOR_BYTES", 16 << 10)
    monkeypatch.setattr(samplers, "WINDOW_BYTES", 24 << 10)


@pytest.fixture
def folders(tmp_path: Path) -> str:
    return tiny_task(tmp_path / "folders", num_train=15, num_test=4)


def in_table(folder: Path, folders: str, *, group_rows: int) -> str:
    source = tiny_parquet(folder, folders)
    for split in ("train", "test"):
        rows = pq.read_table(f"{source}/{split}.parquet")
        pq.write_table(rows, f"{source}/{split}.parquet", row_group_size=group_rows)
    return source


def in_shards(folder: Path, folders: str) -> str:
    folder.mkdir()
    for split in ("train", "test"):
        with tarfile.open(folder / f"{split}.tar", "w") as archive:
            for number, path in enumerate(sorted((Path(folders) / split).rglob("*.png"))):
                for suffix, content in (("png", path.read_bytes()), ("cls", path.parent.name.encode())):
                    info = tarfile.TarInfo(f"{number:04d}.{suffix}")
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
    (folder / "task.json").write_text((Path(folders) / "task.json").read_text())
    return str(folder)


@pytest.fixture(params=["many row groups", "one row group", "tar"])
def source(request: pytest.FixtureRequest, tmp_path: Path, folders: str) -> str:
    if request.param == "tar":
        return in_shards(tmp_path / "tar", folders)
    return in_table(tmp_path / "table", folders, group_rows=4 if request.param == "many row groups" else 1000)


def sampler(data: TaskData, *, seed: int = 0, balanced: bool = False, batch_size: int = 7) -> WindowSampler:
    of, sizes = data.train.blocks.of, data.train.samples.places["size"]
    settings = {"batch_size": batch_size, "seed": seed, "balanced": balanced}
    return WindowSampler(data.train.labels, sizes, of, data.train.blocks.runs, **settings)


def test_every_image_is_read_as_it_is_stored(source: str, folders: str) -> None:
    whole, streamed = load_task_data("t", folders), load_task_data("t", source)
    assert streamed.sha256 == whole.sha256
    assert streamed.train.blocks.streamed
    assert not whole.train.blocks.streamed, "files are read one by one, however many"
    for index in np.random.default_rng(0).permutation(60).tolist():
        assert streamed.train.encoded(index) == whole.train.encoded(index)
    passed = np.concatenate(list(streamed.train.passed(7)))
    assert sorted(passed.tolist()) == list(range(60))


def test_a_table_that_is_replaced_while_it_trains_ends_the_task(tmp_path: Path, folders: str) -> None:
    source = in_table(tmp_path / "table", folders, group_rows=4)
    data = load_task_data("t", source)
    rows = pq.read_table(f"{source}/train.parquet")
    pq.write_table(rows.slice(0, 10), f"{source}/train.parquet", row_group_size=4)
    gone = int(np.argmax(data.train.samples.places["start"]))
    with pytest.raises(DataError, match=r"train\.parquet row \d+ is not there any more: the file has"):
        data.train.encoded(gone)


def test_an_epoch_has_every_image_once_in_an_order_of_its_own(source: str) -> None:
    drawn = sampler(load_task_data("t", source), batch_size=6)
    epochs = [torch.cat([drawn.batch(step) for step in range(10 * e, 10 * e + 10)]).tolist() for e in range(3)]
    assert all(sorted(epoch) == list(range(60)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_a_batch_is_a_function_of_seed_and_step_alone(source: str) -> None:
    data = load_task_data("t", source)
    one, other = sampler(data), sampler(data)
    batches = [one.batch(step).tolist() for step in range(40)]
    for step in np.random.default_rng(0).permutation(40).tolist():
        assert other.batch(step).tolist() == batches[step]
    assert sampler(data, seed=1).batch(0).tolist() != batches[0]


def test_what_batches_draw_from_is_held_before_and_little_else(source: str) -> None:
    data = load_task_data("t", source)
    drawn, of = sampler(data), data.train.blocks.of
    sizes = np.bincount(of, data.train.samples.places["size"])
    largest = int(sizes.max())
    for step in range(40):
        held = drawn.blocks(step, 2)
        assert {int(of[index]) for index in [*drawn.batch(step), *drawn.batch(step + 1)]} <= set(held)
        assert sum(sizes[held]) <= 3 * (samplers.WINDOW_BYTES + largest)


def test_pieces_of_one_row_group_are_read_in_order(tmp_path: Path, folders: str) -> None:
    data = load_task_data("t", in_table(tmp_path / "table", folders, group_rows=1000))
    drawn, count = sampler(data), len(data.train.blocks.in_order)
    assert count > 5
    seen = [block for step in range(9) for block in drawn.blocks(step, 1)]
    assert list(dict.fromkeys(seen)) == list(range(count))


def test_balanced_draws_the_classes_of_a_window_evenly(tmp_path: Path, folders: str) -> None:
    data = load_task_data("t", in_shards(tmp_path / "tar", folders))
    drawn = torch.cat([sampler(data, balanced=True, batch_size=60).batch(step) for step in range(4)])
    assert len(set(data.train.labels[drawn.numpy()].tolist())) == 4
    of_a_window = sampler(data, balanced=True)._spanning(0, 1)[0]
    counts = np.bincount(data.train.labels[of_a_window.order.numpy()], minlength=4)
    assert counts[counts > 0].max() - counts[counts > 0].min() <= 1


def test_what_is_done_with_large_data_is_said_and_sorted_rows_are_a_warning(source: str) -> None:
    said = load_task_data("t", source).summary()
    assert "GiB to train, in" in said
    random = np.random.default_rng(0)
    if source.endswith("table"):
        rows = pq.read_table(f"{source}/train.parquet")
        pq.write_table(rows.take(random.permutation(len(rows))), f"{source}/train.parquet", row_group_size=4)
        assert "sorted by class" not in load_task_data("t", source).summary()


def test_rows_that_lie_sorted_by_class_are_a_warning(
    tmp_path: Path, folders: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.data.doubts.WINDOW_BYTES", 1)
    said = load_task_data("t", in_shards(tmp_path / "tar", folders)).summary()
    assert "WARNING: the rows are sorted by class: the 1 blocks" in said


def test_of_very_many_images_whole_blocks_are_looked_at_and_every_class(
    source: str, monkeypatch: pytest.MonkeyPatch, folders: str
) -> None:
    monkeypatch.setattr(look, "MOST", 12)
    for data in (load_task_data("t", source), load_task_data("t", folders)):
        assert 12 <= len(data.looked_at) < 45
        assert data.look.blocks.streamed == data.train.blocks.streamed
        assert np.bincount(data.look.labels, minlength=4).min() >= 3
        assert data.look.encoded(2) == data.train.encoded(int(data.looked_at[2]))
        again = load_task_data("t", source if data.train.blocks.streamed else folders)
        assert np.array_equal(again.looked_at, data.looked_at)


@pytest.mark.s3
def test_a_bucket_is_read_in_ranges(tmp_path: Path, s3_url: str, folders: str) -> None:
    whole = load_task_data("t", folders)
    for name, source in (
        ("table", in_table(tmp_path / "table", folders, group_rows=4)),
        ("tar", in_shards(tmp_path / "tar", folders)),
    ):
        store = open_store(f"{s3_url}/{name}")
        for path in Path(source).iterdir():
            store.put_if_absent(path.name, path.read_bytes())
        data = load_task_data("t", f"{s3_url}/{name}")
        assert data.sha256 == whole.sha256
        assert data.train.blocks.streamed
        drawn = sampler(data)
        for step in range(9):
            data.train.blocks.hold(drawn.blocks(step, 2))
            for index in drawn.batch(step).tolist():
                assert data.train.encoded(index) == whole.train.encoded(index)
        data.train.blocks.close()


@pytest.fixture
def script() -> Iterator[object]:
    """Starts `tests.training.streamed`, and ends what is left of it."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> subprocess.Popen[str]:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "tests.training.streamed", *arguments]
        started.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.processes
def test_a_killed_training_ends_with_the_weights_of_an_undisturbed_one(
    tmp_path: Path, folders: str, script: object
) -> None:
    assert callable(script)
    source = in_table(tmp_path / "table", folders, group_rows=4)
    assert script("train", str(tmp_path / "undisturbed"), source).wait(120) == 0
    killed, store = script("train", str(tmp_path / "killed"), source), open_store(f"file://{tmp_path}/killed/store")
    while not any(one.step >= 20 for one in survey_experts(store)[1]):
        assert killed.poll() is None, "it ended before it was killed"
        time.sleep(0.02)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    assert script("train", str(tmp_path / "killed"), source).wait(120) == 0
    records = []
    for name in ("undisturbed", "killed"):
        store = open_store(f"file://{tmp_path}/{name}/store")
        (key,) = (info.key for info in store.list("experts/") if info.key.endswith(".json"))
        records.append(find_expert(store, key.removeprefix("experts/").removesuffix(".json")))
    undisturbed, resumed = records
    assert undisturbed is not None
    assert resumed is not None
    assert undisturbed.expert is not None
    assert resumed.expert is not None
    assert resumed.expert.sha256 == undisturbed.expert.sha256
    assert resumed.metrics["final_loss"] == undisturbed.metrics["final_loss"]


@pytest.mark.processes
def test_memory_is_bounded_by_blocks_and_not_by_the_data(tmp_path: Path, script: object) -> None:
    """300 MB in row groups of 3 MB, read in blocks of 4 MB and windows of 16 MB."""
    assert callable(script)
    folder = tmp_path / "table"
    folder.mkdir()
    random = np.random.default_rng(0)
    names = list(COLOURS)
    for split, count in (("train", 2000), ("test", 4)):
        path = folder / f"{split}.parquet"
        with pq.ParquetWriter(path, pa.schema([("image", pa.binary()), ("label", pa.int32())])) as writer:
            for start in range(0, count, 20):
                rows = [_noise(random) for _ in range(min(20, count - start))]
                labels = pa.array([(start + number) % len(names) for number in range(len(rows))], pa.int32())
                writer.write_table(pa.table({"image": rows, "label": labels}))
    (folder / "task.json").write_text(json.dumps({"classes": names}))
    size = (folder / "train.parquet").stat().st_size
    assert size > 280e6
    reader = script("read", str(folder))
    out, _ = reader.communicate(timeout=200)
    assert reader.returncode == 0
    assert int(out) < size / 2


def _noise(random: np.random.Generator) -> bytes:
    body = io.BytesIO()
    Image.fromarray(random.integers(0, 256, (224, 224, 3), dtype=np.uint8)).save(body, "BMP")
    return body.getvalue()


def test_reading_does_not_wait_for_verification(source: str) -> None:
    assert load_task_data("t", source, Reading(verify=False)).sha256 == load_task_data("t", source).sha256
