"""`condu status` from another process: while a project trains, fuses and serves, and when nothing is running."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fusion.versions.history import Versions
from tests.e2e.project import FAST, Project
from tests.e2e.test_kills import kill_session, wait_for


def ask(project: Project, *arguments: str) -> dict[str, Any]:
    done = project.condu_here("status", *(arguments or ("condu.yaml",)), "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def ask_until(project: Project, process: subprocess.Popen[str], what: Callable[[dict[str, Any]], bool]) -> Any:
    deadline = time.monotonic() + 200
    while not what(told := ask(project)):
        assert process.poll() is None, f"ended with {process.returncode}: {project.log()}"
        assert time.monotonic() < deadline, f"waited too long: {told}"
    return told


def session_files(project: Project) -> list[Path]:
    return list((project.folder / "runtime" / "condu").glob("*"))


def training(told: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        task for session in told["sessions"] for run in session.get("tasks", []) for task in run
        if task["state"] == "training"
    ]  # fmt: skip


def serves(told: dict[str, Any]) -> bool:
    services = [session["service"] for session in told["sessions"] if session.get("service")]
    return any(replica["ready"] for service in services for replica in service["serving"])


def fused(told: dict[str, Any]) -> int:
    return sum(session["fusion"]["num_fused"] for session in told["sessions"] if session.get("fusion"))


def trains_beside_a_version(told: dict[str, Any]) -> bool:
    """Whether the store, which is read a moment earlier, and the session have both seen the first version."""
    return bool(training(told)) and fused(told) == 1 and told["store"]["newest"] is not None


@pytest.mark.ray
def test_a_run_is_seen_while_it_trains_and_fuses_and_killed_it_is_seen_no_more(project: Project) -> None:
    tasks = [{"name": name, "data": data} for name, data in project.tasks.items()]
    tasks[1]["steps"] = 100_000  # the first is fused while this one trains
    project.write_config(tasks=tasks, train={"lanes": 1, **FAST, "save_every_steps": 50}, unseen=None)
    process = project.start("run", "condu.yaml", "--no-evaluate")
    try:
        wait_for(lambda: bool(session_files(project)), process)
        wait_for(lambda: Versions(project.store).newest_number() == 1, process)  # asking costs much more than looking
        told = ask_until(project, process, trains_beside_a_version)
        (session,) = told["sessions"]
        assert "problem" not in session
        assert session["command"] == "condu run condu.yaml --no-evaluate"
        assert (session["pid"], session["store"]) == (process.pid, project.store.url)
        (run,) = session["tasks"]
        assert [task["name"] for task in run] == ["colours", "shapes"]
        assert (run[0]["state"], run[1]["state"], run[1]["steps"]) == ("done", "training", 100_000)
        assert session["fusion"]["version"] == 1
        assert session["service"] is None
        assert told["store"]["newest"]["tasks"] == ["colours"]
        assert told["store"]["experts"]["finished"] == 1
        assert told["store"]["experts"]["unfinished"][0]["identity"] == run[1]["identity"]
        assert ask(project, "--store", project.store_url)["sessions"][0]["pid"] == process.pid
        assert ask(project, "--store", str(project.folder / "another"))["sessions"] == []

        (file,) = session_files(project)
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
        token = json.loads(file.read_text())["token"]
        assert token
        assert token not in json.dumps(told)
        shown = project.condu_here("status", "condu.yaml").stdout
        assert "version 1" in shown
        assert "/100000" in shown
    finally:
        kill_session(process)
    assert session_files(project), "a killed run could not remove its file"
    assert ask(project)["sessions"] == []
    assert session_files(project) == [], "so the next look removes it"


def test_a_service_is_seen_with_its_replicas_and_the_version_that_it_answers_from(finished: Project) -> None:
    with finished.service() as (url, process):
        told = ask_until(finished, process, serves)
        (session,) = told["sessions"]
        assert session["tasks"] == []
        assert session["fusion"] is None
        assert session["service"]["status"] == "RUNNING"
        assert session["service"]["replicas"] == {name: {"RUNNING": 1} for name in ("Replica",)}
        (replica,) = session["service"]["serving"]
        assert replica["url"] == url
        assert replica["version"] == told["store"]["newest"]["version"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 0, finished.log()
        assert session_files(finished) == []


def test_when_nothing_is_running_the_store_is_still_shown(finished: Project) -> None:
    told = ask(finished)
    assert told["sessions"] == []
    newest = Versions(finished.store).newest()  # other tests have added tasks to this project
    assert newest is not None
    assert told["store"]["newest"]["version"] == newest.version
    assert told["store"]["newest"]["tasks"] == list(newest.state.tasks)
    assert told["store"]["newest"]["age_s"] >= 0
    assert told["store"]["experts"]["finished"] >= 2
    assert told["store"]["experts"]["unfinished"] == []
    shown = finished.condu_here("status", "condu.yaml")
    assert shown.returncode == 0
    assert "nothing is running" in shown.stdout


def test_a_store_that_was_never_used_is_not_an_error(tmp_path: Path, project: Project) -> None:
    told = ask(project, "--store", str(tmp_path / "nothing"))
    assert told["store"]["newest"] is None
    assert told["store"]["problem"] is None
    assert not (tmp_path / "nothing").exists()


def test_a_cluster_that_does_not_answer_is_reported_in_seconds_beside_the_store(finished: Project) -> None:
    finished.write_config(ray={"address": "127.0.0.1:9"})
    try:
        (session,) = ask(finished)["sessions"]
    finally:
        finished.write_config()
    assert "ray.address: '127.0.0.1:9' can't be used" in session["problem"]


@pytest.mark.processes
@pytest.mark.parametrize(("file_mode", "folder_mode"), [(0o644, 0o700), (0o600, 0o755)])
def test_a_session_file_that_others_could_have_read_or_written_is_not_used(
    file_mode: int, folder_mode: int, project: Project
) -> None:
    folder = project.folder / "runtime" / "condu"
    folder.mkdir(parents=True)
    born = Path(f"/proc/{os.getpid()}/stat").read_text().rpartition(")")[2].split()[19]
    session = {
        "address": "127.0.0.1:9", "auth_mode": "token", "token": "t", "host": os.uname().nodename, "pid": os.getpid(),
        "born": born, "store": project.store.url, "command": "condu run", "started": "2026-01-01T00:00:00+00:00",
    }  # fmt: skip
    file = folder / "planted.json"
    file.write_text(json.dumps(session))
    file.chmod(0o600)
    folder.chmod(0o700)
    assert "can't be used" in ask(project)["sessions"][0]["problem"], "a proper one is used"
    file.chmod(file_mode)
    folder.chmod(folder_mode)
    done = project.condu("status", "condu.yaml", "--json")  # what it logs is looked at
    assert json.loads(done.stdout)["sessions"] == []
    assert "accessible to this user alone" in " ".join(done.stderr.split())
