"""Where Serve puts the replicas of a service on a cluster of two nodes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator

import pytest

from tests.e2e.project import Project
from tests.e2e.test_two_disks import TwoNodes
from tests.serving.helpers import free_port, publish_tasks

pytestmark = pytest.mark.ray

_DEPLOY = """
import json, sys, time
import ray
from ray import serve
from ray.serve.context import _get_global_client
from fusion.store.address import StoreAddress
from serving.app import build_app
from serving.options import ReplicaOptions, ServiceOptions

address, url, port, replicas, per_node, num_cpus, num_updates = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
ray.init(address=address, log_to_driver=False)
many = ReplicaOptions(min=replicas, max=replicas, per_node=per_node or None)
serve.start(http_options={"host": "127.0.0.1", "port": port})

def told():
    app = _get_global_client().get_serve_details()["applications"]["condu"]
    replicas = app["deployments"]["Replica"]["replicas"]
    return [(one["replica_id"], one["state"].value, one.get("node_id")) for one in replicas]

def done(old):
    running = [replica for replica, state, _ in told() if state == "RUNNING"]
    return len(running) == min(replicas, 2 * per_node or replicas) and not old & set(running)

for update in range(1 + num_updates):
    old = {replica for replica, _, _ in told()} if update else set()
    options = ServiceOptions(
        address=StoreAddress(url), num_cpus=num_cpus, replicas=many, port=port, poll_s=1.0 + update)
    serve.run_many([serve.RunTarget(build_app(options), name="condu")], wait_for_applications_running=False)
    deadline = time.monotonic() + 100
    while not done(old) and time.monotonic() < deadline:
        time.sleep(0.2)
    found = done(old), [(state, node) for _, state, node in told()]
serve.shutdown()
print("FOUND", json.dumps(found))
"""


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoNodes]:
    """Two nodes, with four cores each."""
    if os.getuid():
        pytest.skip("mount namespaces need root")
    folder = tempfile.mkdtemp(prefix="ray-")  # short: its sockets' paths have 107 characters at most
    env = {"RAY_AUTH_MODE": "disabled", "RAY_TMPDIR": folder, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1"}
    try:
        with TwoNodes(Project(tmp_path_factory.mktemp("nodes") / "project", env=env), [], num_cpus=(4, 4)) as nodes:
            yield nodes
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def deploy(
    nodes: TwoNodes, *, replicas: int, per_node: int, num_cpus: int = 1, num_updates: int = 0
) -> list[tuple[str, str | None]]:
    """State and node of each replica, once as many run as there is room for, all of them started by the last update.

    `per_node` 0: any number.
    """
    project = nodes.project
    if not list(project.store.list("versions/")):
        publish_tasks(project.store)
    words = [f"127.0.0.1:{nodes.port}", project.store_url, free_port(), replicas, per_node, num_cpus, num_updates]
    done = subprocess.run(
        [sys.executable, "-c", _DEPLOY, *map(str, words)], env=project.env, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("FOUND")]
    in_time, found = json.loads(line.removeprefix("FOUND"))
    assert in_time, found
    return [tuple(one) for one in found]


def test_two_replicas_are_on_two_nodes_though_either_has_room_for_both(nodes: TwoNodes) -> None:
    found = deploy(nodes, replicas=2, per_node=0)
    assert [state for state, _ in found] == ["RUNNING", "RUNNING"]
    assert len({node for _, node in found}) == 2


@pytest.mark.soak
def test_a_replica_that_finds_every_node_full_waits_for_another(nodes: TwoNodes) -> None:
    found = deploy(nodes, replicas=3, per_node=1)
    running = [node for state, node in found if state == "RUNNING"]
    assert len(running) == len(set(running)) == 2
    assert len(found) == 3


@pytest.mark.soak
def test_an_update_of_replicas_that_fill_their_nodes_replaces_one_after_the_other(nodes: TwoNodes) -> None:
    """Started beside the old, the new ones would wait for ever."""
    found = deploy(nodes, replicas=2, per_node=1, num_cpus=4, num_updates=1)
    assert len({node for state, node in found if state == "RUNNING"}) == 2
