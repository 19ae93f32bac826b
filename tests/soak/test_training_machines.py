"""Machines that die while a run trains and fuses: the same experts to the bit as in a quiet run, each fused once.

`make soak-machines` runs this, with two to four minutes a scenario on two cores.
"""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.project import FAST, Project
from tests.soak.machines import BUCKET, Machine, Machines, real

pytestmark = [pytest.mark.soak, pytest.mark.processes]

TRAIN = {**FAST, "lanes": 2, "steps": 150, "save_every_steps": 10}
_WAIT = """
import re, sys, time
from fusion.store import open_store
store = open_store(sys.argv[1])
while True:
    keys = [info.key for info in store.list("")]
    if any(re.search(sys.argv[2], key) for key in keys):
        break
    time.sleep(0.05)
"""
_EXPERTS = """
import json, sys
from fusion.store import open_store
from fusion.versions.experts import find_expert
from fusion.versions.history import Versions
store = open_store(sys.argv[1])
versions = Versions(store)
newest = versions.newest()
held = [list(versions.read(number).state.tasks) for number in versions.all_numbers()]
records = [find_expert(store, info.key[8:-5]) for info in store.list("experts/") if info.key.count("/") == 1]
print(json.dumps({
    "experts": {record.task: record.expert.sha256 for record in records},
    "fused": {name: entry.expert_sha256 for name, entry in newest.state.tasks.items()},
    "held": held,
}))
"""


@dataclass
class Site:
    """Machines with a cluster on them: a head without cores, which runs the driver, and two workers of one core."""

    lab: Machines
    head: Machine
    workers: list[Machine]
    project: Project
    url: str

    def start(self) -> subprocess.Popen[bytes]:
        return self.head.start("condu", "run", self.project.config, "--no-evaluate", log=self.log)

    @property
    def log(self) -> Path:
        return self.lab.folder / "run.log"

    def wait_for_key(self, pattern: str, process: subprocess.Popen[bytes]) -> None:
        """Until the store holds a key that matches."""
        watcher = self.head.start("python", "-c", _WAIT, self.url, pattern, log=self.lab.folder / "watch.log")
        try:
            while watcher.poll() is None:
                assert process.poll() is None, self.log.read_text()[-3000:]
                time.sleep(0.05)
        finally:
            if watcher.poll() is None:
                watcher.kill()
        assert watcher.returncode == 0, (self.lab.folder / "watch.log").read_text()

    def end(self, process: subprocess.Popen[bytes], timeout_s: float = 600) -> dict[str, dict[str, str]]:
        """Wait for the end of a run. Returns the experts' hashes, once all are fused exactly once and intact."""
        assert process.wait(timeout_s) == 0, self.log.read_text()[-5000:]
        found = json.loads(self.head.run("python", "-c", _EXPERTS, self.url).stdout)
        assert found["held"] == [["colours"], ["colours", "shapes"]], "no task is lost, none fused twice"
        assert set(found["fused"]) == set(found["experts"]) == {"colours", "shapes"}
        assert "Traceback" not in self.log.read_text()
        self.head.run("condu", "versions", "verify", "--store", self.url)
        return {"experts": found["experts"], "fused": found["fused"]}


@pytest.fixture
def new_site(new_lab: Callable[[], Machines], tmp_path: Path) -> Callable[[], Site]:
    def make() -> Site:
        lab = new_lab()
        url = f"s3://{BUCKET}/soak"
        project = Project(tmp_path / f"project-{lab.folder.parent.name}", store=url)
        project.write_config(train=TRAIN, unseen=None, ray={"address": "auto"}, fusion={"num_cpus": 0})
        site = Site(lab, lab.add("head"), [], project, url)
        site.head.ray_head(num_cpus=0)
        for name in ("one", "two"):
            site.workers.append(lab.add(name))
            site.workers[-1].ray_worker(site.head, num_cpus=1)
        return site

    return make


@pytest.fixture(scope="module")
def quiet() -> dict[str, dict[str, str]]:
    """Filled by the first scenario: what a run without any death makes."""
    return {}


def expected(quiet: dict[str, dict[str, str]], new_site: Callable[[], Site]) -> dict[str, dict[str, str]]:
    if not quiet:
        site = new_site()
        began = time.monotonic()
        quiet.update(site.end(site.start()))
        report("quiet run", time.monotonic() - began)
        for machine in site.lab.machines:
            if machine.is_on:
                machine.power_off()
    return quiet


def report(what: str, seconds: float) -> None:
    print(f"| {what} | {seconds:.0f} s | same sha256 |")


def host_of(site: Site, kind: str) -> Machine:
    """The machine on which an actor of a class runs."""
    code = (
        "import ray; ray.init(address='auto', log_to_driver=False, namespace='x')\n"
        "from ray.util.state import list_actors\n"
        "ids = {node['NodeID']: node['NodeManagerHostname'] for node in ray.nodes()}\n"
        "alive = list_actors(filters=[('state', '=', 'ALIVE')])\n"
        f"print('HOST', *[ids[actor.node_id] for actor in alive if {kind!r} in actor.class_name])"
    )
    names = re.findall(r"^HOST (\w+)", site.head.python(code), re.MULTILINE)
    assert names, f"no {kind} is alive"
    return next(machine for machine in site.lab.machines if machine.name == names[0])


STEPS = r"^experts/\w+/state/"
UPLOAD = r"^experts/\w+/(?!state/|attempts/)"
FUSING = r"^blobs/"
COMMIT = r"^versions/0*1\.json"


@pytest.mark.parametrize("death", ["kill_raylet", "power_off"])
@pytest.mark.parametrize("moment", [STEPS, UPLOAD, FUSING, COMMIT], ids=["steps", "upload", "fusing", "commit"])
def test_a_worker_that_dies_costs_time_and_nothing_else(
    death: str, moment: str, quiet: dict[str, dict[str, str]], new_site: Callable[[], Site]
) -> None:
    same = expected(quiet, new_site)
    site = new_site()
    began = time.monotonic()
    process = site.start()
    site.wait_for_key(moment, process)
    getattr(site.workers[0], death)()
    assert site.end(process) == same
    report(f"{death} of a worker, {moment}", time.monotonic() - began)


@pytest.mark.parametrize("actor", ["TaskQueue", "FusionActor"])
def test_the_machine_with_an_actor_loses_its_power(
    actor: str, quiet: dict[str, dict[str, str]], new_site: Callable[[], Site]
) -> None:
    same = expected(quiet, new_site)
    site = new_site()
    began = time.monotonic()
    process = site.start()
    site.wait_for_key(STEPS if actor == "TaskQueue" else COMMIT, process)
    machine = host_of(site, actor)
    if machine is site.head:
        pytest.skip(f"the {actor} happened to be on the head, whose death is another scenario")
    machine.power_off()
    assert site.end(process) == same
    report(f"power_off of the machine with the {actor}", time.monotonic() - began)


def test_a_head_that_dies_is_replaced_and_the_run_goes_on(
    quiet: dict[str, dict[str, str]], new_site: Callable[[], Site]
) -> None:
    same = expected(quiet, new_site)
    site = new_site()
    began = time.monotonic()
    process = site.start()
    site.wait_for_key(STEPS, process)
    site.head.power_off()
    process.wait(60)
    for worker in site.workers:  # Kubernetes starts a new cluster: all its machines are new
        worker.power_off()
    site.head = site.lab.add("head2")
    site.head.ray_head(num_cpus=0)
    for name in ("three", "four"):
        site.lab.add(name).ray_worker(site.head, num_cpus=1)
    site.log.unlink()
    assert site.end(site.start()) == same
    report("power_off of the head, all machines replaced", time.monotonic() - began)


def test_a_network_that_is_cut_and_comes_back(quiet: dict[str, dict[str, str]], new_site: Callable[[], Site]) -> None:
    same = expected(quiet, new_site)
    site = new_site()
    began = time.monotonic()
    process = site.start()
    site.wait_for_key(STEPS, process)
    site.workers[0].unplug()
    time.sleep(20)
    site.workers[0].plug()
    assert site.end(process) == same
    report("a worker's network cut for 20 s", time.monotonic() - began)


def test_a_stopped_run_ends_and_the_same_command_goes_on(
    quiet: dict[str, dict[str, str]], new_site: Callable[[], Site]
) -> None:
    same = expected(quiet, new_site)
    site = new_site()
    process = site.start()
    site.wait_for_key(STEPS, process)
    subprocess.run(["kill", "-TERM", str(real(process))], check=True)
    assert process.wait(120) == 130, site.log.read_text()
    assert site.end(site.start()) == same
    for worker in site.workers:
        left = [path for path in (worker.disk / "tmp").glob("condu-*") if path.is_dir()]
        assert left == [], "nothing is left on the nodes"
