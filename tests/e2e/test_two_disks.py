"""A cluster of two nodes with separate disks: what they do not share is named before a lane starts, not by a crash."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.e2e.project import CONDU, FAST, Project
from tests.serving.helpers import free_port

pytestmark = pytest.mark.ray


class TwoNodes:
    """A head, and a node that sees other files: folders are mounted over in a mount namespace of its own."""

    def __init__(self, project: Project, hidden: list[Path], *, num_cpus: tuple[int, int]) -> None:
        self.project = project
        self.port = free_port()
        self._stack = ExitStack()
        self._hidden = hidden
        self._num_cpus = num_cpus

    def __enter__(self) -> TwoNodes:
        try:
            self._start()
        except BaseException:
            self._stack.close()
            raise
        return self

    def _start(self) -> None:
        self._ray("--head", "--port", str(self.port), "--include-dashboard", "false", num_cpus=self._num_cpus[0])
        mounts = " && ".join(["true", *(f"mount -t tmpfs tmpfs {folder}" for folder in self._hidden)])
        own = ["unshare", "--mount", "bash", "-c", f'{mounts} && exec "$@"', "bash"]
        self._ray("--address", f"127.0.0.1:{self.port}", num_cpus=self._num_cpus[1], before=own)

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _ray(self, *arguments: str, num_cpus: int, before: list[str] | None = None) -> None:
        command = [
            *(before or []), str(CONDU.parent / "ray"), "start", "--block", "--node-ip-address", "127.0.0.1",
            "--num-cpus", str(num_cpus), "--object-store-memory", str(100 << 20), "--disable-usage-stats", *arguments,
        ]  # fmt: skip
        log = self.project.folder / f"node-{secrets.token_hex(2)}.txt"
        with log.open("w") as file:
            process = subprocess.Popen(command, env=self.project.env, stdout=file, stderr=file, start_new_session=True)
        self._stack.callback(_end, process)
        deadline = time.monotonic() + 90
        while "Ray runtime started" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
    subprocess.run(["pkill", "-KILL", "-s", str(process.pid)], check=False)  # it led a session of its own


@pytest.fixture
def apart(tmp_path: Path) -> Iterator[Project]:
    if os.getuid() or subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode:
        pytest.skip("mount namespaces need root, and a kernel that allows them")
    folder = tempfile.mkdtemp(prefix="ray-")  # short: its sockets' paths have 107 characters at most
    env = {"RAY_AUTH_MODE": "disabled", "RAY_TMPDIR": folder, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1"}
    try:
        yield Project(tmp_path / "project", env=env)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def test_what_the_nodes_do_not_share_is_named_by_the_doctor_and_before_anything_trains(apart: Project) -> None:
    store, data = apart.folder / "store", apart.folder / "data"
    store.mkdir()
    with TwoNodes(apart, [store, data], num_cpus=(2, 2)) as nodes:
        apart.write_config(ray={"address": f"127.0.0.1:{nodes.port}"}, unseen=None)
        done = apart.condu("doctor", "condu.yaml", "--cluster", "--json")
        assert done.returncode == 1, done.stderr
        checks = {check["what"]: check for check in json.loads(done.stdout)}
        assert "has another store at" in checks["shared"]["problem"]
        assert "lacks" in checks["data"]["problem"]
        assert "RAY_AUTH_MODE=token" in checks["token"]["problem"]
        for what in ("nodes", "python", "ray", "condu", "torch", "clocks", "caches", "gpus", "proxies"):
            assert checks[what]["problem"] is None, checks[what]
        assert checks["nodes"]["found"].count("(2 CPU, 0 GPU)") == 2

        done = apart.condu("run", "condu.yaml", "--no-evaluate")
        said = " ".join(done.stderr.split())
        assert done.returncode == 2, done.stdout + done.stderr
        assert "has another store at" in said
        assert f"lacks {apart.tasks['colours']}, {apart.tasks['shapes']}" in said
        assert "bug" not in said
        assert [info.key for info in apart.store.list("") if not info.key.startswith(("bases/", "data/"))] == []


def test_doctor_asks_a_cluster_only_where_one_is_named(apart: Project) -> None:
    done = apart.condu("doctor", "condu.yaml", "--cluster")
    assert done.returncode == 2
    assert "ray: {address: auto}" in done.stderr


@pytest.mark.soak
def test_a_set_that_one_node_can_t_measure_is_measured_by_another(apart: Project) -> None:
    data = apart.folder / "data"
    with TwoNodes(apart, [data], num_cpus=(1, 2)) as nodes:
        train = {"lanes": 1, **FAST, "num_cpus": 1, "labels": {"ray.io/node-id": _head_id(nodes)}}
        apart.write_config(ray={"address": f"127.0.0.1:{nodes.port}"}, train=train, fusion={"num_cpus": 0})
        done = apart.condu("run", "condu.yaml", "--json")
        assert done.returncode == 0, done.stdout + done.stderr


def _head_id(nodes: TwoNodes) -> str:
    code = (
        f"import ray; ray.init(address='127.0.0.1:{nodes.port}', log_to_driver=False);"
        "print([n['NodeID'] for n in ray.nodes() if 'node:__internal_head__' in n['Resources']][0])"
    )
    done = subprocess.run(
        [str(CONDU.parent / "python"), "-c", code], env=nodes.project.env, capture_output=True, text=True, check=True
    )
    return done.stdout.split()[-1]
