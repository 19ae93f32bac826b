"""A run is planned while Ray starts, and ends at once when Ray does not."""

from __future__ import annotations

import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.config import load_config
from cluster.planning import Planning
from cluster.run import Run, open_run
from fusion.errors import ConfigError, DataError
from tests.e2e.project import Project

TIMEOUT_S = 60


@pytest.fixture
def run(tmp_path: Path) -> Run:
    project = Project(tmp_path / "project")
    return open_run(load_config(project.config))


def test_what_was_planned_is_there_when_ray_is(run: Run) -> None:
    with Planning(run) as planning:
        planning.start()
        planned = planning.result()
    assert [(one.name, one.state) for one in planned.plan.statuses] == [("colours", "waiting"), ("shapes", "waiting")]
    assert list(planned.plan.to_train) == [0, 1]
    assert list(planned.unseen) == ["red-or-circle"]
    assert "2 classes" in planned.unseen["red-or-circle"]


def test_a_broken_task_is_a_status_and_a_broken_set_that_is_only_measured_an_error(run: Run) -> None:
    colours, unseen = run.config.tasks[0], run.config.unseen[0]
    victim = next(Path(colours.data).glob("train/*/*.png"))
    victim.write_bytes(b"no image")
    with Planning(run) as planning:
        planning.start()
        broken, sound = planning.result().plan.statuses
    assert (broken.state, sound.state) == ("failed", "waiting")
    assert victim.name in (broken.reason or "")
    next(Path(unseen.data).glob("test/*/*.png")).write_bytes(b"no image")
    with Planning(run) as planning:
        planning.start()
        with pytest.raises(DataError, match="is not an image"):
            planning.result()
    with Planning(run, unseen=False) as planning:
        planning.start()
        assert planning.result().unseen == {}


def test_many_files_wait_for_a_session_and_are_given_up_when_none_comes(run: Run, tmp_path: Path) -> None:
    """A file of 300 MB counts as many. Reading it here would say that it is no image."""
    large = tmp_path / "large" / "train" / "red" / "0.png"
    large.parent.mkdir(parents=True)
    with large.open("wb") as file:
        os.truncate(file.fileno(), 300 << 20)
    (tmp_path / "large" / "test" / "red").mkdir(parents=True)
    os.link(large, tmp_path / "large" / "test" / "red" / "0.png")
    task = run.config.tasks[0].model_copy(update={"data": str(tmp_path / "large")})
    run = replace(run, config=run.config.model_copy(update={"tasks": (task,), "unseen": ()}))
    asked = threading.Event()

    class Watched(Planning):
        def _session_is_there(self) -> bool:
            asked.set()
            return super()._session_is_there()

    def no_ray(planning: Planning) -> None:
        with planning:
            planning.start()
            assert asked.wait(TIMEOUT_S)
            raise ConfigError("Ray can't be used")

    with pytest.raises(ConfigError):  # and not the test's time limit
        no_ray(Watched(run))
