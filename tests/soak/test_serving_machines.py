"""A service of two replicas on two machines under load, of which one dies.

`make soak-machines` runs this, with four minutes a scenario. It prints a table of failed requests, with and without a
client that tries again, and of the slowest success; a client that tries again must lose nothing.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.e2e.project import FAST, Project
from tests.soak.machines import BUCKET, Machines
from tests.soak.results import Results

pytestmark = [pytest.mark.soak, pytest.mark.processes]

_LOAD = """
import asyncio, json, sys, time
from contextvars import ContextVar
import httpx
from serving.client import AsyncClient, ServiceError
url, image, rate, seconds = sys.argv[1], open(sys.argv[2], "rb").read(), float(sys.argv[3]), float(sys.argv[4])
seen, firsts, lasts, failed, lost = ContextVar("seen"), [], [], [], []

class Watched(httpx.AsyncHTTPTransport):
    async def handle_async_request(self, request):
        start = time.monotonic()
        try:
            answer = await super().handle_async_request(request)
            await answer.aread()
            told = None if answer.status_code == 200 else (
                f"{answer.status_code} {answer.headers.get('content-type', '')} {answer.text[:100]}")
        except httpx.HTTPError as error:
            answer, told = error, type(error).__name__
        if not seen.get():
            seen.get().append(True)
            took = time.monotonic() - start
            firsts.append(took) if told is None else failed.append(f"{took:.1f} s: {told}")
        if isinstance(answer, Exception):
            raise answer
        return answer

async def ask(client):
    seen.set([])
    start = time.monotonic()
    try:
        await client.predict([image], task="colours")
        lasts.append(time.monotonic() - start)
    except ServiceError as error:
        lost.append(str(error))

async def main():
    limits = httpx.Limits(max_connections=None)
    async with AsyncClient(url, transport=Watched(limits=limits)) as client:
        await ask(client)
        firsts.clear(), lasts.clear()
        tasks, start = [], time.monotonic()
        for number in range(int(rate * seconds)):
            await asyncio.sleep(max(0.0, start + number / rate - time.monotonic()))
            tasks.append(asyncio.create_task(ask(client)))
        await asyncio.gather(*tasks)
    print(json.dumps({"asked": len(tasks), "failed": failed, "lost": lost, "slowest_first": round(max(firsts), 1),
                      "slowest": round(max(lasts), 1)}))

asyncio.run(main())
"""
_RATE, _SECONDS, _DEATH_AFTER_S = 20, 120, 30
_AWAY_S = 20


class Service:
    """Two replicas on two machines of one core each; the head has none, nor has the machine that started them."""

    def __init__(self, lab: Machines, project: Project, *, with_redis: bool) -> None:
        self.lab, self.project = lab, project
        on_head = lab.redis(lab.machines[0]) if with_redis else {}
        self.head = lab.add("head")
        self.head.env |= on_head
        self.head.ray_head(num_cpus=0)
        self.workers = [lab.add(name) for name in ("one", "two")]
        self.other = lab.add("other")
        for machine, num_cpus in (*((worker, 1) for worker in self.workers), (self.other, 0)):
            machine.ray_worker(self.head, num_cpus=num_cpus)
        self.head.run("condu", "run", project.config, "--no-evaluate")
        log = lab.folder / "serve.log"
        process = self.other.start("condu", "serve", project.config, log=log)
        deadline = time.monotonic() + 240
        while "stop with Ctrl-C" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.5)
        assert "on http://0.0.0.0" not in log.read_text(), "the printed addresses can be asked"
        nodes = {self.head.ip, *(worker.ip for worker in self.workers)}
        while set(self.addresses()) != nodes:  # a proxy on each node with a replica: they are on two nodes
            assert time.monotonic() < deadline, f"{self.addresses()} answer, not {nodes}"

    def addresses(self) -> list[str]:
        """Where the service says that it answers."""
        told = json.loads(self.head.run("condu", "status", self.project.config, "--json").stdout)
        found = [session["service"]["urls"] for session in told["sessions"] if session.get("service")]
        return [str(urlsplit(url).hostname) for url in found[0]] if found else []


def nothing(service: Service) -> None:
    pass


def raylet(service: Service) -> None:
    service.workers[0].kill_raylet()


def power(service: Service) -> None:
    service.workers[0].power_off()


def drain(service: Service) -> None:
    service.workers[0].run(
        "ray", "drain-node", "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "soak",
        "--deadline-remaining-seconds", "60", "--address", f"{service.head.ip}:6379",
    )  # fmt: skip
    time.sleep(60)
    service.workers[0].power_off()


def head(service: Service) -> None:
    service.head.kill_all()
    time.sleep(_AWAY_S)
    service.head.ray_head(num_cpus=0)


DEATHS = {
    "nothing dies": nothing,
    "raylet of a replica's machine": raylet,
    "power of a replica's machine": power,
    "a replica's machine is drained": drain,
    "the head is gone for 20 s": head,
}


@pytest.mark.parametrize("scenario", DEATHS)
def test_a_client_that_tries_again_loses_nothing(
    scenario: str, new_lab: Callable[[], Machines], results: Results, tmp_path: Path
) -> None:
    results.begin("serving", scenario)
    lab = new_lab()
    if DEATHS[scenario] is head and shutil.which("redis-server") is None:
        pytest.skip("no redis-server, where a head keeps its state: as root, apt-get install redis-server")
    project = Project(tmp_path / "project", store=f"s3://{BUCKET}/soak")
    project.write_config(
        train={**FAST, "lanes": 2},
        unseen=None,
        ray={"address": "auto"},
        fusion={"num_cpus": 0},
        serve={"host": "0.0.0.0", "auth": "none", "replicas": {"min": 2, "max": 2}, "poll_s": 1.0},
    )
    service = Service(lab, project, with_redis=DEATHS[scenario] is head)
    image = next((project.folder / "data" / "colours" / "test" / "blue").iterdir())
    log = lab.folder / "load.log"
    # through the proxy of a machine that stays: a load balancer in front of all of them is not part of condu
    asked = service.workers[1] if DEATHS[scenario] is head else service.head
    url = f"http://{asked.ip}:8000"
    load = service.other.start("python", "-c", _LOAD, url, image, str(_RATE), str(_SECONDS), log=log)
    time.sleep(_DEATH_AFTER_S)
    DEATHS[scenario](service)
    assert load.wait(_SECONDS + 200) == 0, log.read_text()
    found = json.loads(log.read_text().splitlines()[-1])
    failed = found["failed"]
    results.add(
        "serving", scenario, asked=found["asked"], failed=len(failed), lost=len(found["lost"]),
        slowest_first=found["slowest_first"], slowest=found["slowest"], how="; ".join(failed[:3]), all=failed,
    )  # fmt: skip
    assert found["lost"] == []
