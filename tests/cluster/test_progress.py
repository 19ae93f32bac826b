"""What a run says while it trains: first what it understood of each task's data, once."""

from __future__ import annotations

import pytest

from cluster.progress import TaskProgress
from training.lanes.task_queue import TaskStatus


def test_what_was_understood_of_a_task_is_said_once_and_before_its_training(capsys: pytest.CaptureFixture[str]) -> None:
    waiting = TaskStatus("pets", understood="class folders, 2 classes; everything is in pets/")
    with TaskProgress() as progress:
        progress.update([waiting])
        progress.update([TaskStatus("pets", state="training", understood=waiting.understood)])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["pets", "pets"]
    assert "class folders, 2 classes; everything is in pets/" in lines[0]
    assert lines[1].endswith("training")


def test_a_training_that_stopped_early_says_where(capsys: pytest.CaptureFixture[str]) -> None:
    with TaskProgress() as progress:
        progress.update([TaskStatus("pets", state="done", step=250, steps=1000, seconds=12.3)])
        progress.update([TaskStatus("food", state="done", step=1000, steps=1000, seconds=40.0)])
    first, second = capsys.readouterr().out.splitlines()
    assert first.endswith("trained in 12 s, stopped after 250 of 1000 steps")
    assert second.endswith("trained in 40 s")
