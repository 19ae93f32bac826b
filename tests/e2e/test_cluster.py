"""condu on a Ray cluster that was there before and stays: run, killed and run again, serve, and status beside each."""

from __future__ import annotations

import json
import secrets
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import yaml

from fusion.store import open_store
from fusion.versions.history import Versions
from serving.client import Client
from tests.e2e.project import CONDU, FAST, Project, is_ready
from tests.e2e.test_kills import kill_session, wait_for
from tests.e2e.test_status import ask, ask_until, serves, session_files, training, trains_beside_a_version
from tests.serving.helpers import free_port

pytestmark = pytest.mark.soak  # two minutes


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Project]:
    """A project on a cluster of one node, on loopback, that wants a token."""
    port = free_port()
    own = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    # in Ray's usual folder it would leave its address, and whoever calls ray.init later would try to join it
    own["RAY_TMPDIR"] = tempfile.mkdtemp(prefix="ray-")  # short: its sockets' paths have 107 characters at most
    project = Project(tmp_path / "project", env=own)
    project.write_config(ray={"address": f"127.0.0.1:{port}"}, unseen=None)
    node = [
        CONDU.parent / "ray", "start", "--head", "--block", "--node-ip-address", "127.0.0.1", "--port", str(port),
        "--num-cpus", "4", "--object-store-memory", str(100 << 20), "--include-dashboard", "false",
        "--disable-usage-stats",
    ]  # fmt: skip
    log = tmp_path / "node.txt"
    with log.open("w") as file:
        process = subprocess.Popen(node, env=project.env, stdout=file, stderr=file, start_new_session=True)
    try:
        wait_for(lambda: "Ray runtime started" in log.read_text(), process)
        yield project
    finally:
        kill_session(process)
        shutil.rmtree(own["RAY_TMPDIR"], ignore_errors=True)


def test_a_cluster_is_asked_while_it_trains_and_while_it_serves_and_outlives_both(cluster: Project) -> None:
    tasks = [{"name": name, "data": data} for name, data in cluster.tasks.items()]
    ray = yaml.safe_load(cluster.config.read_text())["ray"]
    endless = [tasks[0], {**tasks[1], "steps": 100_000}]
    cluster.write_config(ray=ray, unseen=None, tasks=endless, train={"lanes": 1, **FAST, "save_every_steps": 50})
    process = cluster.start("run", "condu.yaml", "--no-evaluate")
    try:
        told = ask_until(cluster, process, trains_beside_a_version)
        (session,) = told["sessions"]
        assert "problem" not in session
        assert session["address"] == ray["address"]
        assert "pid" not in session, "a cluster's driver may be anywhere"
        assert [task["state"] for task in session["tasks"][0]] == ["done", "training"]
        assert session_files(cluster) == [], "nothing is announced on this machine, and no token written down"
        assert "Ray at 127.0.0.1" in cluster.condu("status", "condu.yaml").stdout
    finally:
        kill_session(process)

    cluster.write_config(ray=ray, unseen=None)
    done = cluster.condu("run", "condu.yaml", "--no-evaluate")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "trained before" in done.stdout

    with cluster.service() as (_, process):
        told = ask_until(cluster, process, serves)
        (session,) = told["sessions"]
        assert session["service"]["replicas"] == {name: {"RUNNING": 1} for name in ("Replica",)}
        assert session["service"]["serving"][0]["version"] == told["store"]["newest"]["version"] == 2
        assert not training(told), "the killed run left nothing behind"
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 0, cluster.log()
    (session,) = ask(cluster)["sessions"]
    assert (session["service"], "problem" in session) == (None, False)


def test_a_token_that_is_not_the_cluster_s_is_an_error_that_names_it(cluster: Project) -> None:
    cluster.env["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    assert "RAY_AUTH_TOKEN" in ask(cluster)["sessions"][0]["problem"]


def test_runs_at_once_for_one_store_and_another_lose_no_task_and_fuse_none_twice(cluster: Project) -> None:
    """Two of them share a store, its fusion actor and a task; all three share four cores, of which two are actors'."""
    values = yaml.safe_load(cluster.config.read_text())
    tasks = {name: {"name": name, "data": data} for name, data in cluster.tasks.items()}
    tasks["forms"] = {"name": "forms", "data": cluster.tasks["shapes"], "lr": 1.0e-3}
    other = (cluster.folder / "other").as_uri()
    runs = {
        "a": {"tasks": [tasks["colours"], tasks["shapes"]]},
        "b": {"tasks": [tasks["forms"], tasks["colours"]]},
        "c": {"tasks": [tasks["shapes"], tasks["colours"]], "store": other},
    }
    started = {}
    with ExitStack() as stack:
        for name, changes in runs.items():
            (cluster.folder / f"{name}.yaml").write_text(yaml.safe_dump(values | changes))
            process = cluster.start("run", f"{name}.yaml", "--no-evaluate", log=f"{name}.txt")
            stack.callback(end, process)
            started[name] = process
        for name, process in started.items():
            assert process.wait(280) == 0, cluster.log(f"{name}.txt")
    for url, held in ((cluster.store_url, {"colours", "shapes", "forms"}), (other, {"colours", "shapes"})):
        store = open_store(url)
        newest = Versions(store).newest()
        assert newest is not None
        assert set(newest.state.tasks) == held
        assert newest.version == len(held), "each task is fused once"
        records = [info.key for info in store.list("experts/") if info.key.count("/") == 1]
        assert len(records) == len(held), "two runs that have a task in common make one expert"


def end(process: subprocess.Popen[str]) -> None:
    """Kill it, unless it ended by itself."""
    if process.poll() is None:
        kill_session(process)


def tasks_at(url: str) -> set[str]:
    with Client(url) as client:
        return {task.name for task in client.tasks().tasks}


def test_services_of_two_stores_answer_side_by_side_and_a_third_that_is_in_their_way_stops_none(
    cluster: Project,
) -> None:
    """Meanwhile a run adds a task to one of the stores."""
    values = yaml.safe_load(cluster.config.read_text())
    other = (cluster.folder / "other").as_uri()
    port = free_port()
    for name, store, serve in (
        ("a", cluster.store_url, {}),
        ("b", other, {"name": "flowers", "route": "/flowers"}),
        ("c", other, {}),
    ):
        sections = {"store": store, "serve": {**values["serve"], "port": port, **serve}}
        (cluster.folder / f"{name}.yaml").write_text(yaml.safe_dump(values | sections))
    for name in ("a", "b"):
        done = cluster.condu("run", f"{name}.yaml", "--no-evaluate")
        assert done.returncode == 0, done.stdout + done.stderr
    with ExitStack() as stack:
        started = {}
        for name, url in (("a", f"http://127.0.0.1:{port}"), ("b", f"http://127.0.0.1:{port}/flowers")):
            started[name] = process = cluster.start("serve", f"{name}.yaml", log=f"{name}.txt")
            stack.callback(end, process)
            wait_for(lambda url=url: is_ready(url), process)
        refused = cluster.condu("serve", "c.yaml")
        assert refused.returncode == 2
        assert "already serves" in refused.stderr
        for name, url in (("a", f"http://127.0.0.1:{port}"), ("b", f"http://127.0.0.1:{port}/flowers")):
            assert is_ready(url), "the refused one stopped nobody"
            told = json.loads(cluster.condu("status", f"{name}.yaml", "--json").stdout)
            assert told["sessions"][0]["service"]["urls"] == [url]
        added = cluster.condu("add-task", "a.yaml", "forms", "--data", cluster.tasks["shapes"])
        assert added.returncode == 0, added.stdout + added.stderr
        wait_for(lambda: "forms" in tasks_at(f"http://127.0.0.1:{port}"), started["a"])
        assert tasks_at(f"http://127.0.0.1:{port}/flowers") == {"colours", "shapes"}
        started["a"].send_signal(signal.SIGTERM)
        assert started["a"].wait(120) == 0, cluster.log("a.txt")
        assert is_ready(f"http://127.0.0.1:{port}/flowers")
        started["b"].send_signal(signal.SIGTERM)
        assert started["b"].wait(120) == 0, cluster.log("b.txt")
