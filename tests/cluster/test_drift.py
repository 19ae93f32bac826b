"""`condu drift`: from a log in the store to an exit code, a table, JSON and a picture; what it says where it can't."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageOps

from fusion.answers.predictor import Predictor
from fusion.store import Store
from fusion.store.node_cache import NodeCache
from serving.metrics import NoMetrics
from serving.options import LogOptions
from serving.request_log.rows import Row
from serving.request_log.writer import LogWriter
from tests.e2e.project import Project
from tests.fusion.vectors import publish_each
from tests.serving.helpers import TASKS, pictures, publish_tasks

DAY = 86400.0


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A store whose tasks have evidence, and no log."""
    project = Project(tmp_path_factory.mktemp("drift") / "project")
    publish_tasks(project.store, evidence=True)
    return project


@pytest.fixture
def store(project: Project) -> Store:
    for info in list(project.store.list("log/")):
        project.store.delete(info.key)
    return project.store


def log(
    store: Store,
    task: str | None,
    images: Sequence[Image.Image],
    *,
    space: str = "task",
    matched: Sequence[str] = (),
    days_ago: float = 0.0,
) -> None:
    """Log images as a service does."""
    clip = Predictor(NodeCache(store)).shelf.base.clip
    writer = LogWriter(store, LogOptions(sample=1.0), NoMetrics())
    features = clip.image_features(clip.pixels(images)).half().numpy()
    writer.add(
        [
            Row(
                time=time.time() - days_ago * DAY, request="r", version=1, label_space=space, named=task,
                matched=tuple(matched), routed=None, experts=(), task=task, label="red", probability=0.5,
                familiarity=None, unknown=None, views=1, features=own, image=None,
            )
            for own in features
        ]
    )  # fmt: skip
    writer.close(30)


def of_task(task: str, count: int = 40, *, seed: int = 11) -> list[Image.Image]:
    classes = TASKS[task]
    return pictures(*(classes[i % len(classes)] for i in range(count)), seed=seed)


def inverted(images: Sequence[Image.Image]) -> list[Image.Image]:
    return [ImageOps.invert(image) for image in images]


def drift(project: Project, *arguments: str | Path) -> dict[str, Any]:
    """The command's JSON, and its exit code as `code`."""
    done = project.condu_here("drift", "condu.yaml", "--json", *arguments)
    assert done.returncode in (0, 1), done.stderr
    return {"code": done.returncode, **json.loads(done.stdout)}


def test_what_was_trained_is_no_drift_and_what_changed_is_whoever_names_the_task(
    project: Project, store: Store
) -> None:
    log(store, "colours", of_task("colours"))
    log(store, None, of_task("shapes"), space="seen")
    found = drift(project)
    assert (found["code"], found["drifted"], found["images"]) == (0, False, 80)
    assert found["tasks"]["colours"]["named"] == 40
    assert sum(found["tasks"]["colours"]["familiarity"]) == found["tasks"]["colours"]["images"]
    log(store, "shapes", inverted(of_task("shapes", seed=12)))
    changed = drift(project, "--since", "1h")
    assert (changed["code"], changed["images"]) == (1, 120)
    assert [name for name, task in changed["tasks"].items() if task["drifted"]] == ["shapes"]
    assert changed["familiar_to_no_task"] > 0.1


def test_the_table_says_what_the_json_says_and_a_picture_is_drawn(project: Project, store: Store) -> None:
    log(store, "colours", of_task("colours"))
    log(store, "shapes", inverted(of_task("shapes")))
    log(store, None, of_task("colours", 4), space="labels")
    picture = project.folder / "drift.png"
    done = project.condu_here("drift", "condu.yaml", "--picture", picture)
    assert done.returncode == 1, done.stderr
    lines = {line.split("│")[1].strip(): line for line in done.stdout.splitlines() if line.count("│") > 5}
    assert "as trained" in lines["colours"]
    assert "drift" in lines["shapes"]
    assert "4" in lines["(of no task)"]
    assert "the images of shapes are unlike what was trained" in done.stdout
    with Image.open(picture) as drawn:
        assert np.asarray(drawn.convert("L")).std() > 5


def test_only_what_was_logged_since_then_is_compared(project: Project, store: Store) -> None:
    log(store, "shapes", inverted(of_task("shapes")), days_ago=3)
    log(store, "shapes", of_task("shapes"))
    assert drift(project, "--since", "1d")["code"] == 0
    assert drift(project, "--since", "7d")["code"] == 1


def test_a_store_s_url_does_in_place_of_a_configuration(project: Project, store: Store) -> None:
    log(store, "colours", of_task("colours"))
    assert project.condu_here("drift", project.store_url).returncode == 0


def test_a_damaged_file_costs_its_rows_and_a_warning(project: Project, store: Store) -> None:
    log(store, "colours", of_task("colours"))
    store.put_if_absent(f"log/{time.strftime('%Y-%m-%d', time.gmtime())}/235959-30d-{'0' * 16}.parquet", b"PAR1 no")
    found = drift(project)
    assert (found["code"], found["images"]) == (0, 40)
    assert "can't be read" in found["warnings"][0]


def _no_log(store: Store) -> None:
    pass


def _few(store: Store) -> None:
    log(store, "colours", of_task("colours", 19))


def _another_base(store: Store) -> None:
    log(store, "colours", of_task("colours"))
    (info,) = store.list("log/")
    table = pq.read_table(io.BytesIO(store.get(info.key)))
    body = io.BytesIO()
    pq.write_table(table.drop_columns(["features"]), body)
    store.delete(info.key)
    store.put_if_absent(info.key, body.getvalue())


@pytest.mark.parametrize(
    ("prepare", "arguments", "says"),
    [
        (_no_log, (), "has no request log since"),
        (_few, (), "19 images since"),
        (_another_base, (), "it has no column 'features'"),
        (_no_log, ("--since", "soon"), "--since 'soon' is no time"),
        (_no_log, ("--version", "99"), "no version 99"),
        (_few, ("--picture", "nowhere/p.png"), "19 images"),
    ],
)
def test_what_can_t_be_told_is_exit_code_2_and_a_sentence(
    project: Project, store: Store, prepare: Callable[[Store], None], arguments: tuple[str, ...], says: str
) -> None:
    prepare(store)
    done = project.condu_here("drift", "condu.yaml", *arguments)
    assert done.returncode == 2
    assert says in " ".join(done.stderr.split())


def test_a_store_without_versions_or_without_evidence_is_exit_code_2(tmp_path: Path) -> None:
    project = Project(tmp_path / "project")
    done = project.condu_here("drift", "condu.yaml")
    assert (done.returncode, "nothing was published" in done.stderr or "no version" in done.stderr) == (2, True)
    publish_each(tmp_path, project.store, ["a"])
    done = project.condu_here("drift", "condu.yaml")
    assert done.returncode == 2
    assert "has no evidence of any task" in " ".join(done.stderr.split())
