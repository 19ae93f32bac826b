"""`condu data select` as a user calls it: before anything is trained, with labelled images, and of a published task."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.e2e.project import Project
from tests.serving.helpers import publish_tasks
from tests.tiny import COLOURS, tiny_task


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return Project(tmp_path_factory.mktemp("select") / "project")


@pytest.fixture(scope="module")
def pool(project: Project) -> list[Path]:
    """Images of four colours in one folder, without their labels."""
    made = Path(tiny_task(project.folder / "made", classes=tuple(COLOURS), seed=4))
    folder = project.folder / "pool"
    folder.mkdir()
    for number, path in enumerate(sorted(made.rglob("*.png"))):
        (folder / f"{path.parent.name}-{number:03d}.png").write_bytes(path.read_bytes())
    return sorted(folder.iterdir())


def asked(project: Project, *arguments: str | Path) -> dict[str, Any]:
    done = project.condu_here("data", "select", *arguments, "--json")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_before_anything_is_known_the_choice_covers_the_images(project: Project, pool: list[Path]) -> None:
    found = asked(project, "pool", "--budget", "8")
    assert (found["images"], found["answered_by"], len(found["chosen"])) == (len(pool), None, 8)
    assert len({Path(one["image"]).name.partition("-")[0] for one in found["chosen"]}) == len(COLOURS)
    assert {one["label"] for one in found["chosen"]} == {None}


def test_labelled_images_answer_and_are_not_chosen_again(project: Project, pool: list[Path], tmp_path: Path) -> None:
    for path in pool[::3]:
        (tmp_path / "labelled" / path.name.partition("-")[0]).mkdir(parents=True, exist_ok=True)
        (tmp_path / "labelled" / path.name.partition("-")[0] / path.name).write_bytes(path.read_bytes())
    found = asked(project, "pool", "--budget", "1000", "--labelled", tmp_path / "labelled")
    assert found["answered_by"] == "the labelled images"
    assert found["already_labelled"] == len(pool[::3])
    assert {Path(one["image"]) for one in found["chosen"]} == {Path("pool") / path.name for path in pool} - {
        Path("pool") / path.name for path in pool[::3]
    }
    assert all(0 <= one["uncertainty"] <= 1 and one["label"] in COLOURS for one in found["chosen"])


def test_a_published_task_says_what_it_is_unsure_of(project: Project, pool: list[Path], tmp_path: Path) -> None:
    from fusion.store import open_store

    publish_tasks(open_store(str(tmp_path / "store")), evidence=True)
    found = asked(project, "pool", "--budget", "3", "--model", tmp_path / "store", "--task", "colours")
    assert found["answered_by"] == "task colours"
    assert [one["rank"] for one in found["chosen"]] == [1, 2, 3]
    assert all(0 < one["probability"] <= 1 for one in found["chosen"])


def test_csv_and_contact_sheet_are_written_and_a_broken_image_is_named(
    project: Project, pool: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    done = project.condu_here(
        "data", "select", "pool", tmp_path / "broken.png", "--budget", "12",
        "--output", tmp_path / "next.csv", "--sheet", tmp_path / "next.png",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"left out: {tmp_path / 'broken.png'}" in done.stderr
    rows = list(csv.DictReader(io.StringIO((tmp_path / "next.csv").read_text())))
    assert [row["rank"] for row in rows] == [str(rank) for rank in range(1, 13)]
    assert {row["uncertainty"] for row in rows} == {""}
    assert all((project.folder / row["image"]).is_file() for row in rows)
    with Image.open(tmp_path / "next.png") as sheet:
        assert sheet.size == (640, 128)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["pool", "--budget", "0"], "greater than or equal to 1"),
        (["nowhere", "--budget", "2"], "nowhere: no such file"),
        (["pool", "--budget", "2", "--task", "colours"], "leave --task out"),
        (["pool", "--budget", "2", "--model", "none.yaml"], "none.yaml"),
        (["pool", "--budget", "2", "--output", "next.txt"], "is written as .csv"),
        (["pool", "--budget", "2", "--labelled", "nowhere"], "nowhere"),
    ],
)
def test_what_cannot_be_done_is_told(project: Project, pool: list[Path], arguments: list[str], says: str) -> None:
    done = project.condu_here("data", "select", *arguments)
    assert done.returncode != 0
    assert says in " ".join(done.stderr.split()), done.stderr
    assert "Traceback" not in done.stderr
