"""`condu demo --quick`, which tells in a minute or two whether what is installed works."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from cluster.commands.demo import shortened
from cluster.config import load_config
from tests.e2e.project import ROOT, Project

_DEMO = ROOT / "configs" / "demo.yaml"


def test_the_quick_demo_is_the_demo_with_less() -> None:
    config, short = load_config(_DEMO), shortened(load_config(_DEMO))
    assert [task.name for task in short.tasks] == [task.name for task in config.tasks][:2]
    assert short.base == config.base
    assert short.recipe(short.tasks[0]).steps < config.recipe(config.tasks[0]).steps
    assert short.demo.modes == ()


@pytest.mark.soak
def test_the_quick_demo_answers_and_leaves_nothing(bare: Project, tmp_path: Path) -> None:
    bare.env["TMPDIR"] = tempfile.mkdtemp(prefix="demo-")  # short: Ray's sockets are below it
    done = bare.condu("demo", "--quick", "--config", _DEMO)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "condu trains, fuses, measures and answers here" in done.stdout
    assert list(Path(bare.env["TMPDIR"]).glob("condu-*")) == []
    assert not (bare.folder / "demo-output").exists()
