"""A second run reads no image, through the command line; `--verify` reads them all."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.project import Project
from tests.training.data.test_index import spoil


@pytest.fixture
def spoiled(finished: Project) -> Iterator[Project]:
    """A finished run, whose files have other bytes of the same size and time since."""
    data = finished.folder / "data"
    files = {path: (path.read_bytes(), path.stat()) for path in [*data.rglob("*.png"), *data.rglob("*.parquet")]}
    for path in files:
        spoil(path)
    try:
        yield finished
    finally:
        for path, (content, before) in files.items():
            path.write_bytes(content)
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_second_run_reads_no_image_and_verify_reads_them_all(spoiled: Project) -> None:
    second = spoiled.condu("run", "condu.yaml", "--no-evaluate")
    assert second.returncode == 0, second.stdout + second.stderr
    assert second.stdout.count("trained before") == 2
    _, changed = sorted((spoiled.folder / "data" / "unseen").rglob("*.png"))[:2]
    os.utime(changed, (time.time() - 60,) * 2)
    third = spoiled.condu("run", "condu.yaml")
    assert third.returncode == 1
    assert f"{Path(*changed.parts[-3:])} is not an image" in third.stderr
    last = spoiled.condu("run", "condu.yaml", "--no-evaluate", "--verify")
    assert last.returncode == 1
    assert "000.png is not an image" in last.stderr
    assert ".parquet can't be read as Parquet" in last.stderr
