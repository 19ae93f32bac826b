"""The whole line through a real S3 server, with one changed line of configuration."""

from __future__ import annotations

import json
import secrets
from pathlib import Path

import pytest

from fusion.store import open_store
from fusion.versions.history import Versions
from tests.e2e.project import Project
from tests.s3_server import S3Server


@pytest.mark.ray
def test_the_whole_goes_through_s3(s3_server: S3Server, tmp_path: Path, monkeypatch: object) -> None:
    url = f"s3://{s3_server.bucket}/{secrets.token_hex(6)}"
    project = Project(tmp_path / "project", store=url, env=dict(s3_server.env))
    healthy = project.condu("doctor", "--store", url)
    assert "put-if-absent work" in healthy.stdout, healthy.stdout + healthy.stderr
    done = project.condu("run", "condu.yaml", "--output", "out")
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((project.folder / "out" / "report.json").read_text())
    assert report["version"] == 2
    assert report["tasks"][0]["fused"]["lowrank"] > 90
    image = next((project.folder / "data" / "colours" / "test" / "red").iterdir())
    asked = project.condu("predict", image, "--store", url, "--task", "colours", "--json")
    assert json.loads(asked.stdout)["predictions"][0]["label"] == "red"
    out = project.condu("export", "--store", url, "--task", "colours", "colours.safetensors")
    assert out.returncode == 0, out.stderr
    assert (project.folder / "colours.safetensors").stat().st_size > 1_000_000
    for name, value in s3_server.env.items():
        monkeypatch.setenv(name, value)  # type: ignore[attr-defined]
    assert Versions(open_store(url)).all_numbers() == [1, 2]
