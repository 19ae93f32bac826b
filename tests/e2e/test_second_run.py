"""A second run reads no image, through the command line; `--verify` reads them all."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tests.e2e.project import Project
from tests.training.data.test_index import settle, spoil

pytestmark = pytest.mark.ray


def test_a_second_run_reads_no_image_and_verify_reads_them_all(project: Project) -> None:
    data = project.folder / "data"
    settle(data)
    first = project.condu("run", "condu.yaml")
    assert first.returncode == 0, first.stderr
    for path in [*data.rglob("*.png"), *data.rglob("*.parquet")]:
        spoil(path)
    second = project.condu("run", "condu.yaml", "--no-evaluate")
    assert second.returncode == 0, second.stdout + second.stderr
    assert second.stdout.count("trained before") == 2
    _, changed = sorted((data / "unseen").rglob("*.png"))[:2]
    os.utime(changed, (time.time() - 60,) * 2)
    third = project.condu("run", "condu.yaml")
    assert third.returncode == 1
    assert f"{Path(*changed.parts[-3:])} is not an image" in third.stderr
    last = project.condu("run", "condu.yaml", "--no-evaluate", "--verify")
    assert last.returncode == 1
    assert "000.png is not an image" in last.stderr
    assert ".parquet can't be read as Parquet" in last.stderr
