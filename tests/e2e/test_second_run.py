"""A second run trains and publishes nothing, and reads no image; `--verify` reads them all."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fusion.versions.history import Versions
from tests.e2e.project import Project
from tests.e2e.test_run import experts
from tests.training.data.test_index import settle, spoil


@pytest.fixture
def spoiled(finished: Project) -> Iterator[Project]:
    """A finished run, whose files have other bytes of the same size and time since."""
    data = finished.folder / "data"
    files = {path: path.read_bytes() for path in [*data.rglob("*.png"), *data.rglob("*.parquet")]}
    for path in files:
        spoil(path)
    try:
        yield finished
    finally:
        for path, content in files.items():
            path.write_bytes(content)
        settle(data)  # at another time than before: what was found out about these files no longer counts


def test_a_second_run_reads_no_image_and_verify_reads_them_all(spoiled: Project) -> None:
    before, versions = experts(spoiled), Versions(spoiled.store).all_numbers()
    second = spoiled.condu("run", "condu.yaml", "--no-evaluate")
    assert second.returncode == 0, second.stdout + second.stderr
    assert second.stdout.count("trained before") == 2
    assert "training" not in second.stdout
    assert experts(spoiled) == before
    assert Versions(spoiled.store).all_numbers() == versions, "nothing is published"
    _, changed = sorted((spoiled.folder / "data" / "unseen").rglob("*.png"))[:2]
    os.utime(changed, (time.time() - 60,) * 2)
    third = spoiled.condu("run", "condu.yaml")
    assert third.returncode == 1
    assert f"{Path(*changed.parts[-3:])} is not an image" in third.stderr
    last = spoiled.condu("run", "condu.yaml", "--no-evaluate", "--verify")
    assert last.returncode == 1
    assert "000.png is not an image" in last.stderr
    assert ".parquet can't be read as Parquet" in last.stderr
