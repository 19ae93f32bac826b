"""Machines that die while a run trains and fuses: the same experts to the bit as in a quiet run, each fused once.

`make soak-machines` runs this, with two to four minutes a scenario on two cores. What the quiet run made is kept
with the results, so that a scenario can be run alone.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.project import FAST, Project
from tests.soak.machines import BUCKET, SOURCE, Machine, Machines, real
from tests.soak.results import Results

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
    """Machines with a cluster on them: a head without cores, which runs the driver, and two workers of two cores."""

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

    def join(self, name: str, *, disk_mib: int | None = None) -> Machine:
        """A new worker of two cores: room for a lane and the fusion actor."""
        worker = self.lab.add(name)
        if disk_mib:
            worker.small_disk(mib=disk_mib)
        worker.ray_worker(self.head, num_cpus=2)
        self.workers.append(worker)
        return worker

    def power_off(self) -> None:
        for machine in self.lab.machines:
            if machine.is_on:
                machine.power_off()

    def writer(self, process: subprocess.Popen[bytes]) -> Machine:
        """The machine whose request the gate holds, as soon as it does."""
        while not (held := self.lab.gate.held()):
            assert process.poll() is None, self.log.read_text()[-3000:]
            time.sleep(0.02)
        return next(machine for machine in self.lab.machines if machine.ip == held[0])

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
def new_site(new_lab: Callable[[], Machines], tmp_path: Path) -> Callable[..., Site]:
    def make(*workers: str, train: dict[str, object] = TRAIN, disk_mib: int | None = None) -> Site:
        lab = new_lab()
        url = f"s3://{BUCKET}/soak"
        project = Project(tmp_path / f"project-{lab.folder.parent.name}", store=url)
        project.write_config(train=train, unseen=None, ray={"address": "auto"}, fusion={"num_cpus": 1})
        site = Site(lab, lab.add("head"), [], project, url)
        site.head.ray_head(num_cpus=0)
        for name in workers or ("one", "two"):
            site.join(name, disk_mib=disk_mib)
        return site

    return make


@pytest.fixture
def same(new_site: Callable[..., Site], results: Results) -> dict[str, dict[str, str]]:
    """What a run makes in which nothing dies. It is made again when the code that makes experts has changed."""
    code = hashlib.sha256()
    for path in sorted([*(SOURCE / "training").rglob("*.py"), *(SOURCE / "fusion").rglob("*.py")]):
        code.update(path.read_bytes())
    known = results.find("training", QUIET)
    if known is None or known["code"] != code.hexdigest():
        site = new_site()
        began = time.monotonic()
        made = site.end(site.start())
        results.add(
            "training", QUIET, died="nothing", seconds=time.monotonic() - began, same="", made=made,
            code=code.hexdigest(),
        )  # fmt: skip
        site.power_off()
        known = results.find("training", QUIET)
    assert known is not None
    made = known["made"]
    return made


QUIET = "quiet run"
STEPS = r"^experts/\w+/state/"
DONE = r"^versions/0*1\.json"
WRITES = {
    "a state's write": r"^PUT \S+/experts/\w+/state/",
    "an expert's upload": r"^PUT \S+/experts/\w+/expert-",
    "fusing": r"^PUT \S+/blobs/",
    "the commit": r"^PUT \S+/versions/0*1\.json",
}
"""The first line of the request during which the machine that sends it dies."""
DEATHS = {"raylet": Machine.kill_raylet, "power": Machine.power_off}


def keep(results: Results, scenario: str, died: str, began: float, made: object, same: object) -> None:
    """A row of the table, once the experts are the quiet run's."""
    assert made == same
    results.add("training", scenario, died=died, seconds=time.monotonic() - began, same=True)


def hosts_of(site: Site, kind: str) -> list[Machine]:
    """The machines on which actors of a class run."""
    code = (
        "import ray; ray.init(address='auto', log_to_driver=False, namespace='x')\n"
        "from ray.util.state import list_actors\n"
        "ids = {node['NodeID']: node['NodeManagerHostname'] for node in ray.nodes()}\n"
        "alive = list_actors(filters=[('state', '=', 'ALIVE')])\n"
        f"print('HOSTS', *[ids[actor.node_id] for actor in alive if {kind!r} in actor.class_name])"
    )
    names = re.findall(r"^HOSTS(.*)", site.head.python(code), re.MULTILINE)[0].split()
    return [machine for machine in site.lab.machines if machine.name in names]


@pytest.mark.parametrize("death", DEATHS)
@pytest.mark.parametrize("moment", WRITES)
def test_a_machine_that_dies_while_it_writes_costs_time_and_nothing_else(
    death: str, moment: str, same: dict[str, dict[str, str]], new_site: Callable[..., Site], results: Results
) -> None:
    scenario = f"{moment}: {death}"
    results.begin("training", scenario)
    site = new_site()
    site.lab.gate.hold(WRITES[moment])
    began = time.monotonic()
    process = site.start()
    machine = site.writer(process)
    assert machine is not site.head, "lanes and fusion actor run on the workers"
    DEATHS[death](machine)
    keep(results, scenario, f"{death} of the machine that writes", began, site.end(process), same)


@pytest.mark.parametrize("death", DEATHS)
def test_a_worker_that_dies_between_steps_costs_time_and_nothing_else(
    death: str, same: dict[str, dict[str, str]], new_site: Callable[..., Site], results: Results
) -> None:
    scenario = f"between steps: {death}"
    results.begin("training", scenario)
    site = new_site()
    began = time.monotonic()
    process = site.start()
    site.wait_for_key(STEPS, process)
    DEATHS[death](site.workers[0])
    keep(results, scenario, f"{death} of a worker", began, site.end(process), same)


@pytest.mark.parametrize("death", DEATHS)
def test_the_queue_s_machine_dies(
    death: str, same: dict[str, dict[str, str]], new_site: Callable[..., Site], results: Results
) -> None:
    scenario = f"the queue's machine: {death}"
    results.begin("training", scenario)
    site = new_site()
    began = time.monotonic()
    process = site.start()
    site.wait_for_key(STEPS, process)
    (machine,) = hosts_of(site, "TaskQueue")
    if machine is site.head:
        pytest.skip("the queue happened to be on the head, whose death is another scenario")
    DEATHS[death](machine)
    keep(results, scenario, f"{death} of the machine with the task queue", began, site.end(process), same)


@pytest.mark.parametrize("moment", ["between steps", "the commit"])
def test_a_head_that_dies_is_replaced_and_the_run_goes_on(
    moment: str, same: dict[str, dict[str, str]], new_site: Callable[..., Site], results: Results
) -> None:
    scenario = f"head, {moment}: power"
    results.begin("training", scenario)
    site = new_site()
    if moment in WRITES:
        site.lab.gate.hold(WRITES[moment])
    began = time.monotonic()
    process = site.start()
    if moment in WRITES:
        site.writer(process)
    else:
        site.wait_for_key(STEPS, process)
    site.head.power_off()
    process.wait(60)
    for worker in site.workers:  # Kubernetes starts a new cluster: all its machines are new
        worker.power_off()
    site.head = site.lab.add("head2")
    site.head.ray_head(num_cpus=0)
    for name in ("three", "four"):
        site.join(name)
    site.log.unlink()
    made = site.end(site.start())
    keep(results, scenario, "power of all machines; the command again on a new cluster", began, made, same)


@pytest.mark.parametrize("seconds", [20, 90])
def test_a_network_that_is_cut_and_comes_back(
    seconds: int, same: dict[str, dict[str, str]], new_site: Callable[..., Site], results: Results
) -> None:
    """After 90 s the machine was given up: its worker has trained on, and may write beside the one in its place."""
    scenario = f"network cut for {seconds} s"
    results.begin("training", scenario)
    site = new_site()
    began = time.monotonic()
    process = site.start()
    site.wait_for_key(STEPS, process)
    site.workers[0].unplug()
    time.sleep(seconds)
    site.workers[0].plug()
    keep(results, scenario, "a worker's link", began, site.end(process), same)


def test_a_slow_store_costs_time_and_nothing_else(
    same: dict[str, dict[str, str]], new_site: Callable[..., Site], results: Results
) -> None:
    scenario = "slow S3"
    results.begin("training", scenario)
    site = new_site()
    site.lab.gate.slow(before_s=0.3, bytes_per_s=2e6)
    began = time.monotonic()
    keep(results, scenario, "0.3 s a request, 2 MB/s", began, site.end(site.start()), same)


def test_a_full_disk_on_one_node_costs_no_task(
    same: dict[str, dict[str, str]], new_site: Callable[..., Site], results: Results
) -> None:
    scenario = "full disk on one node"
    results.begin("training", scenario)
    site = new_site(disk_mib=200)
    began = time.monotonic()
    process = site.start()
    site.wait_for_key(STEPS, process)
    (fuses,) = hosts_of(site, "FusionActor")
    full = next(machine for machine in site.workers if machine is not fuses)
    full.fill_disk()
    keep(results, scenario, "scratch folder and node cache of a worker", began, site.end(process), same)
    assert "the disk is full" in site.log.read_text(), "its lane was given up, and says why"


def test_a_node_that_joins_late_gets_work(
    same: dict[str, dict[str, str]], new_site: Callable[..., Site], results: Results
) -> None:
    scenario = "a node joins late"
    results.begin("training", scenario)
    site = new_site("one", train={**TRAIN, "autoscaling": True})
    began = time.monotonic()
    process = site.start()
    site.wait_for_key(STEPS, process)
    late = site.join("late")
    deadline = time.monotonic() + 120
    while late not in (found := hosts_of(site, "RayTrainWorker")):
        assert process.poll() is None, "the run ended before the new node had work"
        assert time.monotonic() < deadline, f"lanes are on {[machine.name for machine in found]}"
    keep(results, scenario, "nothing; the second of two lanes runs there", began, site.end(process), same)


def test_a_stopped_run_ends_and_the_same_command_goes_on(
    same: dict[str, dict[str, str]], new_site: Callable[..., Site], results: Results
) -> None:
    scenario = "SIGTERM to the command"
    results.begin("training", scenario)
    site = new_site()
    began = time.monotonic()
    process = site.start()
    site.wait_for_key(STEPS, process)
    subprocess.run(["kill", "-TERM", str(real(process))], check=True)
    assert process.wait(120) == 130, site.log.read_text()
    keep(results, scenario, "the driver; the command again", began, site.end(site.start()), same)
    for worker in site.workers:  # a killed process's folder stays, without a file, until the next one starts there
        left = [path for path in (worker.disk / "tmp").glob("condu-*/**/*") if path.name != ".owner"]
        assert left == [], "nothing is left on the nodes"
        assert list((worker.disk / "tmp").glob("condu-lanes-*")) == []
