from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from fusion.errors import DataError
from tests.tiny import picture
from training.data.task_data import load_task_data
from training.data.zoo import _spoken


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CONDU_TORCHVISION_ROOT", str(tmp_path))
    return tmp_path


def test_a_data_set_of_files_without_a_split_is_cut_by_content(root: Path) -> None:
    random = np.random.default_rng(0)
    for name in ("AnnualCrop", "Forest"):
        folder = root / "eurosat" / "2750" / name
        folder.mkdir(parents=True)
        for number in range(20):
            picture("red", random).save(folder / f"{name}_{number}.jpg")
    data = load_task_data("eurosat", "torchvision:EuroSAT")
    assert data.classes == ("annual crop", "forest")
    assert "satellite" in data.templates[0]
    assert len(data.train) + len(data.test) == 40
    assert len(data.test) > 0
    assert data.train.samples[0].origin.endswith(".jpg")
    assert load_task_data("eurosat", "torchvision:EuroSAT").sha256 == data.sha256


def test_a_data_set_of_arrays_has_splits_labels_and_readable_images(root: Path) -> None:
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for split, count in (("train", 20), ("t10k", 10)):
        images = random.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        header = np.array([0x803, count, 28, 28], dtype=">i4").tobytes()
        (folder / f"{split}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        labels = np.arange(count, dtype=np.uint8) % 10
        (folder / f"{split}-labels-idx1-ubyte").write_bytes(
            np.array([0x801, count], dtype=">i4").tobytes() + labels.tobytes()
        )
        for kind in ("images-idx3", "labels-idx1"):
            name = f"{split}-{kind}-ubyte"
            (folder / f"{name}.gz").write_bytes(gzip.compress((folder / name).read_bytes()))
    data = load_task_data("mnist", "torchvision:MNIST")
    assert data.classes == tuple("0123456789")
    assert (len(data.train), len(data.test)) == (20, 10)
    assert sorted(data.train.labels.tolist()) == sorted(list(range(10)) * 2)
    assert data.train.image(0).size == (28, 28)


def test_an_unknown_name_is_refused(root: Path) -> None:
    with pytest.raises(DataError, match="torchvision has no data set 'Dtd'"):
        load_task_data("dtd", "torchvision:Dtd")


def test_a_data_set_that_can_t_be_downloaded_names_the_folder_for_it(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.datasets.dtd.download_and_extract_archive", no_network)
    with pytest.raises(
        DataError, match=rf"torchvision:DTD can't be downloaded \(no route to host\): put it under {root}"
    ):
        load_task_data("dtd", "torchvision:DTD")


@pytest.mark.parametrize(
    ("written", "said"),
    [("AnnualCrop", "annual crop"), ("7 - seven", "7"), ("apple_pie", "apple pie"), ("T-shirt/top", "T-shirt top"),
     ("707-320", "707-320"), ("Abyssinian", "abyssinian"), ("DC-10", "DC-10")],
)  # fmt: skip
def test_class_names_become_words(written: str, said: str) -> None:
    assert _spoken(written) == said
