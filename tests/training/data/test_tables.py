"""Tables of images: Parquet as Hugging Face `datasets` writes it, lists of files, WebDataset shards."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fusion.errors import DataError
from tests.tiny import picture
from training.data.task_data import TaskData, load_task_data

NAMES = ("blue", "green", "red")


def pictures(count: int, seed: int = 0) -> list[tuple[bytes, int]]:
    """Encoded images of each class in turn, and their labels."""
    random = np.random.default_rng(seed)
    found = []
    for index in range(count):
        body = io.BytesIO()
        picture(NAMES[index % 3], random).save(body, "PNG")
        found.append((body.getvalue(), index % 3))
    return found


def hugging_face(
    path: Path, rows: list[tuple[bytes, Any]], *, image: str = "image", label: str = "label", named: bool = True
) -> None:
    """A file as `datasets` writes it: images as structs, class names in the schema's metadata."""
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({
        image: pa.array([{"bytes": data, "path": f"{i}.png"} for i, (data, _) in enumerate(rows)], kind),
        label: pa.array([value for _, value in rows]),
    })  # fmt: skip
    features = {image: {"_type": "Image"}, label: {"names": list(NAMES), "_type": "ClassLabel"}}
    if named:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=4)


def load(root: Path, **choices: object) -> TaskData:
    return load_task_data("t", str(root), **choices)


def test_the_files_that_datasets_writes_need_no_task_json(tmp_path: Path) -> None:
    hugging_face(tmp_path / "train.parquet", pictures(12))
    hugging_face(tmp_path / "test.parquet", pictures(6, seed=1))
    data = load(tmp_path)
    assert data.classes == NAMES
    assert (len(data.train), len(data.test)) == (12, 6)
    assert data.train.image(0).size == (36, 36)


@pytest.mark.parametrize("folder", ["data", "data/train", "default/train", ""])
def test_shards_with_many_row_groups_are_read_by_the_split_in_their_names(tmp_path: Path, folder: str) -> None:
    rows = pictures(12)
    for shard in range(3):
        hugging_face(tmp_path / folder / f"train-0000{shard}-of-00003.parquet", rows[4 * shard : 4 * shard + 4])
    hugging_face(tmp_path / folder.replace("train", "test") / "test-00000-of-00001.parquet", pictures(6, seed=1))
    data = load(tmp_path)
    assert (len(data.train), len(data.test)) == (12, 6)
    one = tmp_path / "one"
    hugging_face(one / "train.parquet", rows)
    hugging_face(one / "test.parquet", pictures(6, seed=1))
    assert load(one).sha256 == data.sha256


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    hugging_face(tmp_path / "train-00000-of-00003.parquet", pictures(3))
    with pytest.raises(DataError, match=r"of 3 shards of train, \[1, 2\] are missing"):
        load(tmp_path)


def test_one_file_without_a_split_is_cut_by_content(tmp_path: Path) -> None:
    hugging_face(tmp_path / "flowers.parquet", pictures(30))
    data = load(tmp_path)
    assert len(data.train) + len(data.test) == 30
    assert "no test split: a fifth of the images is held back" in data.summary()


def test_several_data_sets_in_one_folder_are_refused(tmp_path: Path) -> None:
    for name in ("small", "large"):
        hugging_face(tmp_path / name / "train.parquet", pictures(3))
    with pytest.raises(DataError, match="several data sets, in large/, small/"):
        load(tmp_path)


@pytest.mark.parametrize(("image", "label"), [("img", "labels"), ("pixel_values", "fine_label"), ("IMAGE", "Label")])
def test_other_column_names_are_found(tmp_path: Path, image: str, label: str) -> None:
    for split in ("train", "test"):
        hugging_face(tmp_path / f"{split}.parquet", pictures(6), image=image, label=label)
    assert load(tmp_path).classes == NAMES


def test_of_several_columns_that_would_do_the_configuration_chooses(tmp_path: Path) -> None:
    images = [data for data, _ in pictures(6)]
    table = pa.table({"img": images, "fine_label": ["a", "b"] * 3, "coarse_label": ["x", "y", "z"] * 2})
    for split in ("train", "test"):
        pq.write_table(table, tmp_path / f"{split}.parquet")
    with pytest.raises(DataError, match="several columns for the label: fine_label, coarse_label: choose with label_c"):
        load(tmp_path)
    assert load(tmp_path, label_column="coarse_label").classes == ("x", "y", "z")
    with pytest.raises(DataError, match=r"no column 'fine' .*it has img, fine_label"):
        load(tmp_path, label_column="fine")


def test_string_labels_are_class_names(tmp_path: Path) -> None:
    rows = [(data, NAMES[label]) for data, label in pictures(6)]
    for split in ("train", "test"):
        hugging_face(tmp_path / f"{split}.parquet", rows, named=False)
    data = load(tmp_path)
    assert data.classes == NAMES
    assert load(tmp_path, classes=["red", "green", "blue"]).classes == ("red", "green", "blue")


def test_numbered_labels_are_named_by_the_configuration(tmp_path: Path) -> None:
    for split in ("train", "test"):
        hugging_face(tmp_path / f"{split}.parquet", pictures(6), named=False)
    with pytest.raises(DataError, match="labels are numbers without names"):
        load(tmp_path)
    assert load(tmp_path, classes=["a", "b", "c"]).classes == ("a", "b", "c")


def test_numbered_labels_whose_names_are_given_in_another_order_are_refused(tmp_path: Path) -> None:
    for split in ("train", "test"):
        hugging_face(tmp_path / f"{split}.parquet", pictures(6))
    with pytest.raises(DataError, match="own names in another order: leave it out"):
        load(tmp_path, classes=["red", "green", "blue"])


def test_an_unlabelled_split_is_refused_by_row(tmp_path: Path) -> None:
    hugging_face(tmp_path / "train.parquet", pictures(6))
    hugging_face(tmp_path / "test.parquet", [(data, -1) for data, _ in pictures(3)])
    with pytest.raises(DataError, match=r"test\.parquet row 0 has label -1; the labels of the classes are 0 to 2"):
        load(tmp_path)


def test_a_name_on_the_hub_is_refused_with_what_to_do() -> None:
    with pytest.raises(DataError, match=r"not read from the Hugging Face hub\. Export it"):
        load_task_data("t", "hf://datasets/org/name")


@pytest.mark.s3
def test_a_bucket_of_shards_is_the_same_data(tmp_path: Path, s3_url: str) -> None:
    from fusion.store import open_store

    for split in ("train", "test"):
        hugging_face(tmp_path / "data" / f"{split}-00000-of-00001.parquet", pictures(6))
    store = open_store(s3_url)
    for path in sorted(tmp_path.rglob("*.parquet")):
        store.put_if_absent(path.relative_to(tmp_path).as_posix(), path.read_bytes())
    assert load_task_data("t", s3_url).sha256 == load(tmp_path).sha256


# lists of files


def listed(root: Path, split: str, rows: list[tuple[bytes, int]], *, table: str = "metadata.csv") -> None:
    folder = root / split
    folder.mkdir(parents=True, exist_ok=True)
    records = []
    for number, (data, label) in enumerate(rows):
        (folder / f"{number}.png").write_bytes(data)
        records.append({"file_name": f"{number}.png", "label": NAMES[label]})
    if table.endswith(".csv"):
        text = "file_name,label\n" + "".join(f"{r['file_name']},{r['label']}\n" for r in records)
    else:
        text = "".join(json.dumps(record) + "\n" for record in records)
    (folder / table).write_text(text)


@pytest.mark.parametrize("table", ["metadata.csv", "metadata.jsonl"])
def test_images_listed_in_a_table_beside_them(tmp_path: Path, table: str) -> None:
    listed(tmp_path, "train", pictures(9), table=table)
    listed(tmp_path, "test", pictures(6, seed=1), table=table)
    data = load(tmp_path)
    assert data.classes == NAMES
    assert (len(data.train), len(data.test)) == (9, 6)


def test_one_table_with_a_column_for_the_split(tmp_path: Path) -> None:
    listed(tmp_path, "images", pictures(9))
    (tmp_path / "images" / "metadata.csv").unlink()
    rows = [f"images/{i}.png,{NAMES[i % 3]},{'train' if i < 6 else 'test'}" for i in range(9)]
    (tmp_path / "labels.csv").write_text("path,class,split\n" + "\n".join(rows))
    data = load(tmp_path)
    assert (len(data.train), len(data.test)) == (6, 3)


def test_a_table_without_a_path_or_a_label_leaves_class_folders_as_they_are(tmp_path: Path) -> None:
    for number, (data, label) in enumerate(pictures(30)):
        (tmp_path / NAMES[label]).mkdir(exist_ok=True)
        (tmp_path / NAMES[label] / f"{number}.png").write_bytes(data)
    (tmp_path / "labels.csv").write_text("id,name\n0,blue\n")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "blue/0.png", "caption": "a blue square"}\n')
    assert load(tmp_path).classes == NAMES


def test_a_file_may_be_listed_twice(tmp_path: Path) -> None:
    for split in ("train", "test"):
        listed(tmp_path, split, pictures(6))
    table = tmp_path / "train" / "metadata.csv"
    table.write_text(table.read_text() + "0.png,blue\n5.png,red\n0.png,blue\n")
    data = load(tmp_path)
    assert data.train.labels.tolist() == [0, 0, 0, 0, 1, 1, 2, 2, 2]
    first = (tmp_path / "train" / "0.png").read_bytes()
    assert sum(data.train.encoded(index) == first for index in range(9)) == 3


def test_listed_files_that_are_not_there_are_named(tmp_path: Path) -> None:
    listed(tmp_path, "train", pictures(9))
    (tmp_path / "train" / "4.png").unlink()
    with pytest.raises(DataError, match=r"1 listed files are not there: 4\.png"):
        load(tmp_path)


# WebDataset


def shard(path: Path, rows: list[tuple[bytes, int]], *, json_label: bool = False) -> None:
    with tarfile.open(path, "w") as archive:
        for number, (data, label) in enumerate(rows):
            fields = {"png": data, "cls": str(label).encode()}
            if json_label:
                fields = {"png": data, "json": json.dumps({"label": NAMES[label]}).encode()}
            for ending, content in fields.items():
                info = tarfile.TarInfo(f"{number:05d}.{ending}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))


@pytest.mark.parametrize("json_label", [False, True])
def test_webdataset_shards_are_read(tmp_path: Path, json_label: bool) -> None:
    shard(tmp_path / "train-0000.tar", pictures(6), json_label=json_label)
    shard(tmp_path / "train-0001.tar", pictures(6, seed=2), json_label=json_label)
    shard(tmp_path / "test-0000.tar", pictures(3, seed=1), json_label=json_label)
    data = load(tmp_path) if json_label else load(tmp_path, classes=NAMES)
    assert data.classes == NAMES
    assert (len(data.train), len(data.test)) == (12, 3)
    assert "3 WebDataset shards" in data.summary()


def test_a_compressed_shard_is_refused(tmp_path: Path) -> None:
    shard(tmp_path / "plain.tar", pictures(3))
    (tmp_path / "train.tar").write_bytes(gzip.compress((tmp_path / "plain.tar").read_bytes()))
    (tmp_path / "plain.tar").unlink()
    with pytest.raises(DataError, match=r"train\.tar can't be read as a tar file"):
        load(tmp_path)


def test_images_and_labels_of_a_shard_may_lie_apart(tmp_path: Path) -> None:
    for split in ("train", "test"):
        rows = pictures(6)
        with tarfile.open(tmp_path / f"{split}.tar", "w") as archive:
            for suffix in ("cls", "png"):
                for number, (data, label) in enumerate(rows):
                    info = tarfile.TarInfo(f"{number}.{suffix}")
                    content = data if suffix == "png" else NAMES[label].encode()
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
    data = load(tmp_path)
    assert data.classes == NAMES
    assert data.train.labels.tolist() == [0, 0, 1, 1, 2, 2]


def test_a_broken_shard_is_named(tmp_path: Path) -> None:
    (tmp_path / "train.tar").write_bytes(b"not a tar file at all" * 100)
    with pytest.raises(DataError, match=r"train\.tar can't be read as a tar file"):
        load(tmp_path)
