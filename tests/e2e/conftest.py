"""One finished run for the tests that look at what a run leaves."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.project import Project


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A project that nothing was run in."""
    return Project(tmp_path / "project")


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project after `condu run`. Tests may read it, and add versions, but not take any away."""
    project = Project(tmp_path_factory.mktemp("finished"))
    done = project.condu("run", "condu.yaml", "--output", "out")
    assert done.returncode == 0, done.stdout + done.stderr
    return project
