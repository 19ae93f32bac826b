"""Projects that tests share: one that nothing was run in, and one with a finished run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.project import FAST, Project
from tests.training.data.test_index import settle


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A project that nothing was run in."""
    return Project(tmp_path / "project")


@pytest.fixture(scope="session")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The same, shared: for commands that name their store and leave the project as it is."""
    return Project(tmp_path_factory.mktemp("bare") / "project")


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project after `condu run`. Tests may read it, and add versions, but not take any away."""
    project = Project(tmp_path_factory.mktemp("finished"))
    project.write_config(train={"lanes": 2, **FAST})
    settle(project.folder / "data")  # what was written a moment ago is read again by every run
    done = project.condu("run", "condu.yaml", "--output", "out")
    assert done.returncode == 0, done.stdout + done.stderr
    return project
