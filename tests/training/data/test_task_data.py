from __future__ import annotations

import functools
import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from fusion.answers.images import decode
from fusion.errors import DataError, ImageError
from fusion.store.blobs import canonical_json
from tests.tiny import tiny_parquet, tiny_task
from training.data.task_data import Reading, TaskData, load_task_data, load_test_data


@pytest.fixture
def source(tmp_path: Path) -> str:
    return tiny_task(tmp_path / "colours", num_train=4, num_test=2)


def load(source: str | Path, **choices: object) -> TaskData:
    return load_task_data("colours", str(source), **choices)  # type: ignore[arg-type]


def class_folders(tmp_path: Path, source: str) -> Path:
    """The training images of `source` as class folders without a split."""
    folder = tmp_path / "unsplit"
    shutil.copytree(Path(source) / "train", folder)
    return folder


def test_a_split_folder_gives_both_splits_in_the_order_of_task_json(source: str) -> None:
    data = load(source)
    assert data.classes == ("red", "green", "blue", "yellow")
    assert data.templates == ("a {} picture.", "{}.")
    assert (len(data.train), len(data.test)) == (16, 8)
    assert np.bincount(data.train.labels).tolist() == [4, 4, 4, 4]
    image = data.train.image(0)
    assert image.mode == "RGB"
    assert image.size == (36, 36)
    assert data.train.encoded(0).startswith(b"\x89PNG")


def test_classes_are_the_sorted_folders_and_templates_clip_s_own_without_task_json(source: str) -> None:
    (Path(source) / "task.json").unlink()
    (Path(source) / "train" / "red").rename(Path(source) / "train" / "dark_red")
    (Path(source) / "test" / "red").rename(Path(source) / "test" / "dark_red")
    data = load(source)
    assert data.classes == ("blue", "dark red", "green", "yellow")
    assert data.templates == ("a photo of a {}.",)


def test_the_same_task_in_a_folder_and_in_parquet_is_the_same_data(source: str, tmp_path: Path) -> None:
    folder, parquet = load(source), load(tiny_parquet(tmp_path / "parquet", source))
    assert parquet.sha256 == folder.sha256
    assert parquet.classes == folder.classes
    assert [s.sha256 for s in parquet.train.samples] == [s.sha256 for s in folder.train.samples]


def test_identity_does_not_depend_on_where_the_data_lies_or_what_files_are_called(source: str, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere" / "x"
    shutil.copytree(source, moved)
    for number, path in enumerate(sorted((moved / "train" / "red").iterdir(), reverse=True)):
        path.rename(path.with_name(f"renamed-{number}.jpeg"))
    assert load(moved).sha256 == load(source).sha256
    assert load(f"file://{moved}").sha256 == load(source).sha256


def test_identity_changes_with_images_labels_classes_and_templates(source: str, tmp_path: Path) -> None:
    identities = {load(source).sha256, load(source, templates=["{}!"]).sha256, load(source, few_shot=3).sha256}
    identities.add(load(source, classes=["a", "b", "c", "d"]).sha256)
    path = next((Path(source) / "train" / "red").iterdir())
    shutil.move(path, Path(source) / "train" / "green" / "moved.png")
    identities.add(load(source).sha256)
    assert len(identities) == 5


@pytest.mark.parametrize("at_once", [1, 3, 10_000])
def test_identity_is_that_of_the_canonical_json(source: str, monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    """Stores have experts under it: it never changes, however it is computed."""
    monkeypatch.setattr("training.data.task_data._IMAGES_AT_ONCE", at_once)
    names = ["red", '"images":[]', ',"images":[],', "yellow"]
    data = load(source, classes=names, background="black")
    train = sorted((sample.label, sample.sha256) for sample in data.train.samples)
    assert [(sample.label, sample.sha256) for sample in data.train.samples] == train
    identity = {"classes": names, "templates": ["a {} picture.", "{}."], "images": train, "background": "#000000"}
    assert data.sha256 == hashlib.sha256(canonical_json(identity)).hexdigest()


def test_identity_ignores_the_test_split(source: str) -> None:
    before = load(source).sha256
    next((Path(source) / "test" / "red").iterdir()).unlink()
    assert load(source).sha256 == before


def test_a_missing_split_is_cut_by_content_and_stays_where_it_is_as_images_are_added(tmp_path: Path) -> None:
    folder = class_folders(tmp_path, tiny_task(tmp_path / "many", num_train=40, num_test=1))
    before = load(folder)
    assert len(before.train) + len(before.test) == 160
    assert 0.1 < len(before.test) / 160 < 0.3
    shutil.copytree(Path(tiny_task(tmp_path / "more", num_train=9, seed=1)) / "train", folder / "tmp")
    for path in sorted((folder / "tmp").rglob("*.png")):
        path.rename(folder / path.parent.name / f"added-{path.name}")
    shutil.rmtree(folder / "tmp")
    after = load(folder)
    assert {s.sha256 for s in before.test.samples} <= {s.sha256 for s in after.test.samples}
    assert {s.sha256 for s in before.train.samples} <= {s.sha256 for s in after.train.samples}


def test_few_shot_keeps_the_first_images_of_each_class_by_hash(source: str) -> None:
    all_images, few = load(source), load(source, few_shot=2)
    assert np.bincount(few.train.labels).tolist() == [2, 2, 2, 2]
    for label in range(4):
        hashes = [s.sha256 for s in all_images.train.samples if s.label == label]
        assert [s.sha256 for s in few.train.samples if s.label == label] == sorted(hashes)[:2]
    assert len(few.test) == len(all_images.test)


def test_a_test_only_task_loads_with_an_empty_train(source: str) -> None:
    shutil.rmtree(Path(source) / "train")
    data = load_test_data("colours", source)
    assert (len(data.train), len(data.test)) == (0, 8)
    with pytest.raises(DataError, match="test split only"):
        load(source)


def test_a_bucket_holds_tasks_like_a_folder(source: str, tmp_path: Path, s3_url: str) -> None:
    from fusion.store import open_store

    parquet = tiny_parquet(tmp_path / "parquet", source)
    for root, prefix in ((source, "folder"), (parquet, "parquet")):
        store = open_store(f"{s3_url}/{prefix}")
        for path in sorted(Path(root).rglob("*")):
            if path.is_file():
                store.put_if_absent(path.relative_to(root).as_posix(), path.read_bytes())
    assert load(f"{s3_url}/folder/").sha256 == load(f"{s3_url}/parquet").sha256 == load(source).sha256
    with pytest.raises(DataError, match="holds no files"):
        load(f"{s3_url}/nothing/")


# mistakes that people make, each with what the message has to say


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"/nowhere does not exist"):
        load(tmp_path / "nowhere")


def test_an_unknown_kind_of_source_is_named() -> None:
    with pytest.raises(DataError, match=r"'gs://bucket/x' is not a source of data"):
        load("gs://bucket/x")


def test_a_folder_without_class_folders_is_refused(tmp_path: Path) -> None:
    (tmp_path / "loose.png").write_bytes(b"")
    with pytest.raises(DataError, match="has no class folders"):
        load(tmp_path)


def test_train_without_test_is_refused(source: str) -> None:
    shutil.rmtree(Path(source) / "test")
    with pytest.raises(DataError, match="has train/ but no test split"):
        load(source)


def test_an_empty_class_is_named(source: str) -> None:
    for path in (Path(source) / "train" / "blue").iterdir():
        path.unlink()
    with pytest.raises(DataError, match="no training images for 'blue'"):
        load(source)


def test_a_class_that_only_test_has_is_named(source: str) -> None:
    shutil.copytree(Path(source) / "test" / "red", Path(source) / "test" / "purple")
    with pytest.raises(DataError, match="classes that train/ lacks: purple"):
        load(source)


def test_folders_and_task_json_that_disagree_are_all_named(source: str) -> None:
    path = Path(source) / "task.json"
    path.write_text(json.dumps({"classes": ["red", "green", "blue", "pink"]}))
    with pytest.raises(DataError, match=r"folder yellow is not a class.*'pink' of task.json has no folder"):
        load(source)


def test_unreadable_images_are_all_named(source: str) -> None:
    (Path(source) / "train" / "red" / "000.png").write_bytes(b"not an image")
    (Path(source) / "test" / "blue" / "001.png").write_bytes(b"")
    whole = (Path(source) / "train" / "green" / "002.png").read_bytes()
    (Path(source) / "train" / "green" / "002.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError) as caught:
        load(source)
    for what in ("train/red/000.png is not an image", "train/green/002.png is damaged", "test/blue/001.png is empty"):
        assert what in str(caught.value)
    unchecked = load(source, reading=Reading(verify=False))
    index = [sample.origin.endswith("red/000.png") for sample in unchecked.train.samples].index(True)
    with pytest.raises(ImageError, match=r"train/red/000\.png is not an image"):
        unchecked.train.image(index)


def test_an_image_that_vanished_is_named(source: str) -> None:
    data = load(source)
    shutil.rmtree(Path(source) / "train" / "red")
    with pytest.raises(DataError, match=r"train/red/\d+.png can't be read"):
        data.train.image(0)


def test_a_decompression_bomb_is_not_decoded(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (64, 64)).save(Path(source) / "train" / "red" / "big.png")
    monkeypatch.setattr("training.data.images.decode", functools.partial(decode, max_pixels=2000))
    with pytest.raises(DataError, match=r"big.png has 64 x 64 pixels, more than the 2000"):
        load(source)


@pytest.mark.parametrize("broken", ["{", "[]", '{"classes": []}', '{"classes": [1, 2]}', '{"templates": "a {}"}'])
def test_a_malformed_task_json_is_named(source: str, broken: str) -> None:
    (Path(source) / "task.json").write_text(broken)
    with pytest.raises(DataError, match=r"task\.json"):
        load(source)


@pytest.mark.parametrize("template", ["a photo", "{} and {}", "{name}", "{"])
def test_a_template_that_can_t_be_filled_in_is_shown(source: str, template: str) -> None:
    with pytest.raises(DataError) as caught:
        load(source, templates=["{}.", template])
    assert repr(template) in str(caught.value)


def test_class_names_that_are_repeated_or_too_few(source: str) -> None:
    with pytest.raises(DataError, match=r"class 'a' is named twice.*3 class names are given, the data has 4"):
        load(source, classes=["a", "a", "b"])


def test_folders_with_the_same_name_once_underscores_are_spaces(tmp_path: Path) -> None:
    source = Path(tiny_task(tmp_path / "task", num_train=1))
    (source / "task.json").unlink()
    for name in ("a_b", "a b"):
        shutil.copytree(source / "train" / "red", source / "train" / name)
    with pytest.raises(DataError, match="read alike once '_' is a space: a b"):
        load(source)


def parquet(folder: Path, columns: dict[str, object], *, task: object = None) -> Path:
    """A Parquet task whose train file has these columns."""
    folder.mkdir()
    good = {"image": [b"x"], "label": pa.array([0], pa.int32())}
    pq.write_table(pa.table(columns), folder / "train.parquet")
    pq.write_table(pa.table(good), folder / "test.parquet")
    (folder / "task.json").write_text(json.dumps(task if task is not None else {"classes": ["a", "b"]}))
    return folder


def test_parquet_without_task_json(tmp_path: Path) -> None:
    folder = parquet(tmp_path / "p", {"image": [b"x"], "label": [0]})
    (folder / "task.json").unlink()
    with pytest.raises(DataError, match="labels are numbers without names: list the names"):
        load(folder)


def test_parquet_without_classes(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="labels are numbers without names"):
        load(parquet(tmp_path / "p", {"image": [b"x"], "label": [0]}, task={"name": "x"}))


def test_labels_out_of_range_are_named_by_row(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train\.parquet row 1 has label 7.*row 2 has label None.*row 3 has no image"):
        load(parquet(tmp_path / "p", {"image": [b"x", b"x", b"x", None], "label": [0, 7, None, 1]}))


def test_a_broken_image_in_parquet_is_named_by_row(tmp_path: Path, source: str) -> None:
    path = Path(tiny_parquet(tmp_path / "p", source))
    table = pq.read_table(path / "train.parquet").to_pydict()
    table["image"][3] = b"not an image"
    pq.write_table(pa.table(table), path / "train.parquet")
    with pytest.raises(DataError, match=r"train\.parquet row 3 is not an image"):
        load(path)


@pytest.mark.parametrize(
    "columns",
    [{"depiction": [b"x"], "label": [0]}, {"image": ["text"], "label": [0]}, {"image": [b"x"], "label": [0.5]}],
)
def test_parquet_with_other_columns(tmp_path: Path, columns: dict[str, object]) -> None:
    with pytest.raises(DataError, match=r"train\.parquet.*(no column that holds the image|'image'.*'label')"):
        load(parquet(tmp_path / "p", columns))


def test_a_file_that_is_not_parquet(tmp_path: Path) -> None:
    folder = parquet(tmp_path / "p", {"image": [b"x"], "label": [0]})
    (folder / "train.parquet").write_bytes(b"PAR1 but not really")
    with pytest.raises(DataError, match=r"train\.parquet can't be read as Parquet"):
        load(folder)
