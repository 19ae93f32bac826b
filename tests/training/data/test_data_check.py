"""`condu data check`: what would spoil a training is found before it, each kind in data that has it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.e2e.project import Project
from tests.tiny import picture, tiny_task
from training.data.data_check import DataReport, check_data, class_sheet
from training.data.task_data import Reading, load_task_data


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Pictures that differ: noise on a coarse grid, in the colour of their class."""
    random = np.random.default_rng(0)
    for split, count in (("train", 6), ("test", 3)):
        for name in ("red", "blue"):
            (tmp_path / "data" / split / name).mkdir(parents=True)
            for number in range(count):
                grid = Image.fromarray(random.integers(0, 256, (6, 6, 3), dtype=np.uint8))
                image = Image.blend(grid.resize((48, 48)), picture(name, random, size=48), 0.3)
                image.save(tmp_path / "data" / split / name / f"{number}.png")
    return tmp_path / "data"


def report(source: Path) -> DataReport:
    return check_data(load_task_data("t", str(source), Reading(verify=False)))


def kinds(source: Path) -> dict[str, bool]:
    return {finding.kind: finding.serious for finding in report(source).findings}


def test_good_data_has_no_findings_and_is_counted(source: Path) -> None:
    found = report(source)
    assert found.findings == ()
    assert found.ok
    assert found.counts == {"blue": (6, 3), "red": (6, 3)}
    assert found.formats == {"PNG": 18}


def test_broken_images_are_all_named(source: Path) -> None:
    for place in ("train/red/0.png", "test/blue/1.png"):
        (source / place).write_bytes((source / place).read_bytes()[:200])
    (finding,) = report(source).findings
    assert (finding.kind, finding.serious, len(finding.images)) == ("broken", True, 2)
    assert "train/red/0.png is damaged" in finding.images[0]


def test_a_test_image_that_is_trained_on_is_a_leak(source: Path) -> None:
    shutil.copy(source / "train/red/0.png", source / "test/red/9.png")
    assert kinds(source) == {"leak": True, "understood": False}
    assert "1 test images are also training images" in load_task_data("t", str(source)).warnings[0]


def test_an_image_in_two_classes_is_a_contradiction(source: Path) -> None:
    shutil.copy(source / "train/red/0.png", source / "train/blue/9.png")
    assert kinds(source) == {"contradiction": True, "understood": False}


def test_an_image_that_is_there_twice_is_a_duplicate(source: Path) -> None:
    shutil.copy(source / "train/red/0.png", source / "train/red/9.png")
    assert kinds(source) == {"duplicate": False}


@pytest.mark.parametrize(("place", "kind"), [("train/red/9.jpg", "near duplicate"), ("test/red/9.jpg", "near leak")])
def test_a_scaled_and_recompressed_copy_is_found(source: Path, place: str, kind: str) -> None:
    Image.open(source / "train/red/0.png").resize((70, 70)).save(source / place, quality=70)
    (finding,) = report(source).findings
    assert (finding.kind, finding.serious) == (kind, False)
    assert len(finding.images) == 1
    assert "train/red/0.png" in finding.images[0]


def test_plain_images_are_not_taken_for_copies_of_each_other(source: Path) -> None:
    for number, grey in enumerate((250, 251)):
        Image.new("RGB", (48, 48), (grey, grey, grey)).save(source / f"train/red/plain{number}.png")
    assert kinds(source) == {}


def test_tiny_images_and_lopsided_classes_are_named(source: Path) -> None:
    random = np.random.default_rng(5)
    for number in range(70):
        image = Image.fromarray(random.integers(0, 256, (48, 48, 3), dtype=np.uint8))
        (image.resize((8, 8)) if number == 0 else image).save(source / f"train/red/more{number}.png")
    found = {finding.kind: finding for finding in report(source).findings if not finding.kind.startswith("near")}
    assert set(found) == {"tiny", "imbalance"}
    assert "'red' has 76 training images, 'blue' 6: consider `balanced: true`" in found["imbalance"].message


def test_a_contact_sheet_shows_the_images_of_its_class(source: Path) -> None:
    Image.new("RGB", (48, 48), "blue").save(source / "train/blue/0.png")
    (source / "train/blue/1.png").write_bytes(b"x")
    data = load_task_data("t", str(source), Reading(verify=False))
    sheet = class_sheet(data.train, data.classes.index("blue"), cell=20)
    cells = {sheet.getpixel((20 * place + 10, 10)) for place in range(6)}
    assert sheet.size == (200, 20)
    assert {(0, 0, 255), (128, 128, 128)} <= cells


def test_the_command_reports_and_ends_with_a_code(tmp_path: Path) -> None:
    project = Project(tmp_path)
    source = tiny_task(tmp_path / "mine", classes=("red", "blue"), num_train=4)
    good = project.condu_here("data", "check", source, "--sheets", "sheets", "--json")
    said = json.loads(good.stdout)
    assert (good.returncode, said["ok"], said["layout"]) == (0, True, "class folders")
    assert said["classes"] == [{"name": "red", "train": 4, "test": 5}, {"name": "blue", "train": 4, "test": 5}]
    assert [Path(path).name for path in said["sheets"]] == ["000-red.png", "001-blue.png"]
    (Path(source) / "train/red/000.png").write_bytes(b"no image")
    bad = project.condu_here("data", "check", source)
    assert bad.returncode == 1
    assert "broken 1 images can't be read" in bad.stdout
    assert "train/red/000.png is not an image" in " ".join(bad.stdout.split())
    assert project.condu_here("data", "check", "nowhere").returncode == 1
