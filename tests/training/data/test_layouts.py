"""Class folders as people keep them: understood as they are meant, and said; what is ambiguous is refused with both."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from fusion.errors import DataError
from tests.tiny import picture
from training.data.task_data import TaskData, load_task_data

COLOURS = ("red", "green", "blue")


def write(root: Path, files: Mapping[str, str]) -> Path:
    """Images at these paths, each of a colour or shape."""
    random = np.random.default_rng(0)
    for path, name in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        picture(name, random).save(root / path, "PNG")
    return root


def split(root: Path, train: str, test: str, *, num: int = 3) -> Path:
    return write(root, {f"{part}/{c}/{i}.png": c for part in (train, test) for c in COLOURS for i in range(num)})


def flat(root: Path, *, num: int = 12) -> Path:
    return write(root, {f"{c}/{i}.png": c for c in COLOURS for i in range(num)})


def load(root: Path, **choices: object) -> TaskData:
    return load_task_data("t", str(root), **choices)


def said(data: TaskData) -> str:
    return data.summary()


@pytest.mark.parametrize(
    ("train", "test"),
    [("Training", "Testing"), ("TRAIN", "TEST"), ("Train", "Val"), ("train", "valid"), ("training_set", "validation")],
)
def test_splits_are_understood_whatever_they_are_called(tmp_path: Path, train: str, test: str) -> None:
    if train == "training_set":
        train = "train_set"
    data = load(split(tmp_path, train, test))
    assert data.classes == ("blue", "green", "red")
    assert (len(data.train), len(data.test)) == (9, 9)
    assert f"{test}/ is the test split" in said(data)


def test_a_validation_split_beside_a_test_split_is_left_out_and_said(tmp_path: Path) -> None:
    data = load(split(split(tmp_path, "train", "test"), "train", "val", num=5))
    assert (len(data.train), len(data.test)) == (15, 9)
    assert "val/ is left out: test/ is the test split" in said(data)


def test_two_folders_for_one_split_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Training/ and train/ both read as the train split"):
        load(split(split(tmp_path, "train", "test"), "Training", "test"))


def test_a_class_may_be_called_like_a_split(tmp_path: Path) -> None:
    for name in ("bus", "car", "train"):
        write(tmp_path, {f"{name}/{i}.png": "red" for i in range(10)})
    assert load(tmp_path).classes == ("bus", "car", "train")
    moved = tmp_path.parent / "split"
    for part in ("train", "test"):
        shutil.copytree(tmp_path, moved / part)
    data = load(moved)
    assert data.classes == ("bus", "car", "train")
    assert len(data.train) == len(data.test) == 30


def test_splits_that_hold_images_and_no_class_folders_are_refused(tmp_path: Path) -> None:
    write(tmp_path, {"train/1.png": "red", "test/2.png": "red"})
    with pytest.raises(DataError, match="test/, train/ with images directly inside, and no class folders"):
        load(tmp_path)


@pytest.mark.parametrize("wrapper", ["flowers", "archive/flowers", "train_archive"])
def test_one_folder_around_everything_is_entered_and_said(tmp_path: Path, wrapper: str) -> None:
    flat(tmp_path / wrapper)
    data = load(tmp_path)
    assert data.classes == ("blue", "green", "red")
    assert f"everything is in {wrapper}/" in said(data)
    assert data.sha256 == load(tmp_path / wrapper).sha256


def test_litter_of_file_managers_is_left_out_counted_and_said(tmp_path: Path) -> None:
    flat(tmp_path)
    clean = load(tmp_path).sha256
    for name in ("__MACOSX/red/._0.png", "red/.DS_Store", "red/Thumbs.db", "blue/desktop.ini", "red/.hidden.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    data = load(tmp_path)
    assert data.sha256 == clean
    assert "left out 1 .DS_Store, 1 Thumbs.db, 1 __MACOSX, 1 desktop.ini, 1 hidden files" in said(data)


def test_empty_class_folders_are_left_out_and_said(tmp_path: Path) -> None:
    flat(tmp_path)
    (tmp_path / "purple").mkdir()
    data = load(tmp_path)
    assert data.classes == ("blue", "green", "red")
    assert "left out 1 empty class folders: purple" in said(data)


def test_files_that_are_no_images_are_listed_not_trained_on(tmp_path: Path) -> None:
    flat(tmp_path)
    for name in ("red/notes.txt", "blue/labels.xml", "README.md"):
        (tmp_path / name).write_text("x")
    assert "left out 2 files that are no images: blue/labels.xml, red/notes.txt" in said(load(tmp_path))


def test_files_without_a_suffix_are_images(tmp_path: Path) -> None:
    flat(tmp_path)
    (tmp_path / "red" / "0.png").rename(tmp_path / "red" / "4f2a")
    assert len(load(tmp_path).train) + len(load(tmp_path).test) == 36


def test_a_readme_without_a_suffix_is_no_image_and_hides_no_layout(tmp_path: Path) -> None:
    split(tmp_path / "archive", "train", "test")
    for place in ("LICENSE", "archive/README", "archive/train/README", "archive/train/red/checksum"):
        (tmp_path / place).write_text("words")
    data = load(tmp_path)
    assert (data.classes, len(data.train)) == (("blue", "green", "red"), 9)
    assert "left out 2 files that are no images: train/README, train/red/checksum" in said(data)


def test_links_to_folders_are_followed_and_loops_are_cut(tmp_path: Path) -> None:
    flat(tmp_path / "real")
    (tmp_path / "data").mkdir()
    for name in COLOURS:
        (tmp_path / "data" / name).symlink_to(tmp_path / "real" / name)
    (tmp_path / "real" / "red" / "again").symlink_to(tmp_path / "data")
    (tmp_path / "real" / "red" / "gone.png").symlink_to(tmp_path / "nothing.png")
    data = load(tmp_path / "data")
    assert len(data.train) + len(data.test) == 36
    assert "left out links that lead back to a folder above them: red/again" in said(data)
    assert "left out 1 links to nothing, or no files: red/gone.png" in said(data)


def test_a_task_of_one_class_is_a_warning(tmp_path: Path) -> None:
    data = load(write(tmp_path, {f"red/{i}.png": "red" for i in range(12)}))
    assert "there is only one class, 'red'" in data.warnings[0]
    assert "WARNING: there is only one class" in said(data)


@pytest.mark.parametrize(
    ("one", "other"), [("Cat", "cat"), ("caf\u00e9", "cafe\u0301"), ("big cat", "big  cat"), ("\ufb01sh", "fish")]
)
def test_folders_that_differ_only_in_case_or_unicode_form_are_refused_with_both(
    tmp_path: Path, one: str, other: str
) -> None:
    for name in (one, other):
        write(tmp_path, {f"{name}/{i}.png": "red" for i in range(5)})
    with pytest.raises(DataError) as caught:
        load(tmp_path)
    assert ascii(one) in str(caught.value)
    assert ascii(other) in str(caught.value)


def test_a_class_that_the_splits_spell_differently_is_refused_with_both(tmp_path: Path) -> None:
    split(tmp_path, "train", "test")
    (tmp_path / "test" / "red").rename(tmp_path / "test" / "Red")
    with pytest.raises(DataError, match="'red' and 'Red' differ only in case"):
        load(tmp_path)


NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven")


@pytest.mark.parametrize("where", ["configuration", "task.json"])
@pytest.mark.parametrize("start", [0, 1])
def test_numbered_folders_are_matched_by_number_not_by_text(tmp_path: Path, where: str, start: int) -> None:
    for number in range(12):
        name = "red" if number == 10 else "blue"
        write(tmp_path, {f"{number + start}/{i}.png": name for i in range(6)})
    if where == "task.json":
        (tmp_path / "task.json").write_text('{"classes": ["' + '", "'.join(NUMBER_WORDS) + '"]}')
        data = load(tmp_path)
    else:
        data = load(tmp_path, classes=NUMBER_WORDS)
        assert f"folder {start} is zero" in said(data)
    assert data.classes == NUMBER_WORDS
    for index, sample in enumerate(data.train.samples):
        assert f"/{sample.label + start}/" in sample.origin
        pixel = data.train.image(index).resize((1, 1)).getpixel((0, 0))
        assert (pixel[0] > pixel[2]) == (data.classes[sample.label] == "ten")  # type: ignore[index]


def test_class_names_in_another_order_are_matched_by_name(tmp_path: Path) -> None:
    data = load(flat(tmp_path), classes=["red", "blue", "green"])
    assert data.classes == ("red", "blue", "green")
    assert all(f"/{data.classes[sample.label]}/" in sample.origin for sample in data.train.samples)


def test_images_beside_the_class_folders_are_refused(tmp_path: Path) -> None:
    write(flat(tmp_path), {"loose.png": "red"})
    with pytest.raises(DataError, match=r"images beside the class folders: loose\.png: which class"):
        load(tmp_path)


def test_a_folder_that_can_t_be_listed_is_named(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may list everything")
    flat(tmp_path)
    (tmp_path / "red").chmod(0)
    with pytest.raises(DataError, match="red can't be listed"):
        load(tmp_path)


def test_a_background_is_part_of_the_identity_and_white_is_none(tmp_path: Path) -> None:
    root = flat(tmp_path)
    assert load(root, background="white").sha256 == load(root).sha256
    black = load(root, background="black")
    assert black.sha256 != load(root).sha256
    assert black.train.background == "#000000"
    (root / "task.json").write_text('{"background": "black"}')
    assert load(root).sha256 == black.sha256
    with pytest.raises(DataError, match="'nocolour' is not an opaque colour"):
        load(root, background="nocolour")


@pytest.mark.s3
def test_every_object_of_a_bucket_is_read_whatever_its_key(tmp_path: Path, s3_url: str) -> None:
    from fusion.store import S3Options
    from fusion.store.s3_client import S3Client

    flat(tmp_path)
    bucket, prefix = s3_url.removeprefix("s3://").split("/", 1)
    client = S3Client(s3_url, bucket, S3Options())
    for path in sorted(tmp_path.rglob("*.png")):
        name = path.relative_to(tmp_path).as_posix()
        odd = {"red/0.png": "red\\0.png", "red/1.png": "red/tmp/1.png", "blue/0.png": "blue//0.png"}
        client.call("put_object", "", Key=f"{prefix}/{odd.get(name, name)}", Body=path.read_bytes())
    client.call("put_object", "", Key=f"{prefix}/tmp/x.png", Body=(tmp_path / "red/2.png").read_bytes())
    client.call("put_object", "", Key=f"{prefix}/.DS_Store", Body=b"x")
    data = load_task_data("t", s3_url)
    assert len(data.train) + len(data.test) == 37
    assert data.classes == ("blue", "green", "red", "tmp")
    assert "left out 1 .DS_Store" in data.summary()
