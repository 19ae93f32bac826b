"""A service of two replicas on two machines under load, of which one dies.

`make soak-machines` runs this, with four minutes a scenario. It prints a table of failed requests, with and without a
client that tries again, and of the slowest success; a client that tries again must lose nothing.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.project import FAST, Project
from tests.soak.machines import BUCKET, Machine, Machines

pytestmark = [pytest.mark.soak, pytest.mark.processes]

_LOAD = """
import asyncio, json, sys, time
import httpx
url, image, rate, seconds = sys.argv[1], open(sys.argv[2], "rb").read(), float(sys.argv[3]), float(sys.argv[4])
slowest, failures, lost, done = 0.0, [], 0, 0

async def ask(client):
    global slowest, lost, done
    for attempt in range(4):
        start = time.monotonic()
        try:
            form = {"files": {"image": image}, "data": {"task": "colours"}}
            answer = await client.post(url + "/v1/predict", **form, timeout=60)
            code = answer.status_code
            if code == 200:
                slowest, done = max(slowest, time.monotonic() - start), done + 1
                return
            told = f"{code} {answer.headers.get('content-type', '')} {answer.text[:100]}"
        except httpx.HTTPError as error:
            told = type(error).__name__
        if attempt == 0:
            failures.append(f"{time.monotonic() - start:.1f} s: {told}")
        await asyncio.sleep(0.5 * 2**attempt)
    lost += 1

async def main():
    async with httpx.AsyncClient(limits=httpx.Limits(max_connections=None), trust_env=False) as client:
        tasks, start = [], time.monotonic()
        for number in range(int(rate * seconds)):
            await asyncio.sleep(max(0.0, start + number / rate - time.monotonic()))
            tasks.append(asyncio.create_task(ask(client)))
        await asyncio.gather(*tasks)
    print(json.dumps({"asked": len(tasks), "failed": failures, "lost": lost, "slowest": round(slowest, 1)}))

asyncio.run(main())
"""
_RATE, _SECONDS, _DEATH_AFTER_S = 20, 120, 30


def serve(lab: Machines, project: Project) -> tuple[Machine, list[Machine]]:
    """Train two tasks and serve them from two machines. The service is started on a third, which has no replica."""
    head = lab.add("head")
    head.ray_head(num_cpus=0)
    workers = [lab.add(name) for name in ("one", "two")]
    for worker in workers:
        worker.ray_worker(head, num_cpus=2)
    other = lab.add("other")
    other.ray_worker(head, num_cpus=0)
    head.run("condu", "run", project.config, "--no-evaluate")
    log = lab.folder / "serve.log"
    process = other.start("condu", "serve", project.config, log=log)
    deadline = time.monotonic() + 240
    while "stop with Ctrl-C" not in log.read_text():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.5)
    assert "0.0.0.0" not in log.read_text(), "the printed addresses can be asked"
    return head, workers


@pytest.mark.parametrize("death", ["kill_raylet", "power_off", "none"])
def test_a_client_that_tries_again_loses_nothing(death: str, new_lab: Callable[[], Machines], tmp_path: Path) -> None:
    lab = new_lab()
    project = Project(tmp_path / "project", store=f"s3://{BUCKET}/soak")
    project.write_config(
        train={**FAST, "lanes": 2},
        unseen=None,
        ray={"address": "auto"},
        serve={"host": "0.0.0.0", "num_cpus": 0.5, "replicas": {"min": 2, "max": 2}, "poll_s": 1.0},
    )
    head, workers = serve(lab, project)
    image = next((project.folder / "data" / "colours" / "test" / "blue").iterdir())
    log = lab.folder / "load.log"
    url = f"http://{head.ip}:8000"
    load = head.start("python", "-c", _LOAD, url, image, str(_RATE), str(_SECONDS), log=log)
    time.sleep(_DEATH_AFTER_S)
    if death != "none":
        getattr(workers[0], death)()
    assert load.wait(_SECONDS + 200) == 0, log.read_text()
    found = json.loads(log.read_text().splitlines()[-1])
    print(
        f"| {death} | {found['asked']} | {len(found['failed'])} ({', '.join(found['failed'][:5])}) | {found['lost']} | "
        f"{found['slowest']} s |"
    )
    assert found["lost"] == 0
