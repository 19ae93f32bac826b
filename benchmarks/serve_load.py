"""Claim: the service answers more images a second than one process of FastAPI and torch, however many tasks are asked.

For each base and number of tasks: the raw batched forward, X (a process that decodes and answers one image at a time
with FastAPI and torch, see `serve_plain`), and the service, one after the other on the same machine with the same
client: PNG bodies over kept connections, 1 to 32 at a time, with one task named, with all tasks named in turn, with
labels, and with nothing said. A task that is asked for the first time costs its expert, made ready from its trigger,
and the texts of its classes. Beside it what Serve offers by itself, a deployment per checkpoint (`serve_checkpoints`),
for a few tasks in turn. Memory is that of all processes that answer, pages that they share counted once. The last line
is JSON.

    python -m benchmarks.serve_load                               the demo's base, 8, 32 and 100 tasks
    python -m benchmarks.serve_load --base ViT-B-32               the same with random weights
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np
import torch

from benchmarks.serve_store import demo_images, png, publish_tasks, put_named_base
from cluster.demo_service import free_port
from cluster.serving_config import start_service
from cluster.session import RayOptions, ray_session
from fusion.answers.clip import build_clip
from fusion.answers.predictor import ModelShelf
from fusion.answers.view import ViewLoader
from fusion.store import Store, open_store
from fusion.store.address import StoreAddress
from fusion.store.node_cache import NodeCache
from fusion.versions.manifest import Manifest
from serving.options import ServiceOptions

_LOADS = (1, 4, 16, 32)
_WARM_UP_S = 1.0
_START_S = 120.0
_PYTHON = {"RAY_SERVE_ENABLE_HA_PROXY": "0"}
_DIRECT = {
    "RAY_SERVE_ENABLE_DIRECT_INGRESS": "1",
    "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": "{direct}",
    "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": "{beyond}",
}
_INGRESS: dict[str, dict[str, str]] = {
    "haproxy": {},
    "proxy": _PYTHON,
    "grpc": {**_PYTHON, "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1"},
    "one-loop": {
        **_PYTHON,
        "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",
        "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    },
    "direct": {**_PYTHON, **_DIRECT},
}
"""HAProxy in front of the replica, as a local session has it; Serve's proxy in Python, which hands requests on by actor
calls or by gRPC (to a replica with one event loop); the replica itself: settings of Ray's processes."""
_RAY_MARKS = (b"ServeReplica", b"ProxyActor", b"haproxy")
Ask = Callable[[int], str]
"""The path and query of a client's n-th request."""


@dataclass(frozen=True)
class Load:
    """What a number of clients saw, each of which asks again once it is answered.

    Attributes:
        rate: answers per second of wall time.
        p50_ms, p95_ms, p99_ms: time from request to answer.
        cpu_ms: processor time of the server's processes per answer: what a busy machine does not change.
        failed: answers other than 200.
    """

    clients: int
    rate: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    cpu_ms: float
    failed: int

    def __str__(self) -> str:
        times = f"p50 {self.p50_ms:7.1f}  p95 {self.p95_ms:7.1f}  p99 {self.p99_ms:7.1f} ms  cpu {self.cpu_ms:5.1f} ms"
        failed = f"  {self.failed} failed" if self.failed else ""
        return f"{self.clients:3d} at a time  {self.rate:7.1f}/s  {times}{failed}"


@dataclass(frozen=True)
class Server:
    """What is asked: its port, and how its processes are known by their command lines."""

    port: int
    marks: tuple[bytes, ...]

    def processes(self) -> Iterator[Path]:
        for process in Path("/proc").iterdir():
            try:
                if (
                    process.name.isdigit()
                    and _is_ours(process)
                    and any(mark in (process / "cmdline").read_bytes() for mark in self.marks)
                ):
                    yield process
            except OSError:
                continue  # it has ended

    def cpu_s(self) -> float:
        """Processor time that its processes have taken so far."""
        fields = [(process / "stat").read_text().rpartition(")")[2].split() for process in self.processes()]
        return sum(int(one[11]) + int(one[12]) for one in fields) / os.sysconf("SC_CLK_TCK")

    def memory_mb(self) -> int:
        """Memory of its processes, PSS: a page that several of them have counts once."""
        rollups = [(process / "smaps_rollup").read_text().splitlines() for process in self.processes()]
        return sum(int(line.split()[1]) for lines in rollups for line in lines if line.startswith("Pss:")) >> 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="demo", help="demo, or an open_clip architecture")
    parser.add_argument("--tasks", type=int, nargs="+", default=[8, 32, 100])
    parser.add_argument("--loads", type=int, nargs="+", default=list(_LOADS), help="clients at a time")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each load")
    parser.add_argument("--num-cpus", type=float, default=1.0, help="threads of a forward, in every path")
    parser.add_argument("--checkpoints", type=int, default=4, help="tasks with a deployment each; 0: none")
    parser.add_argument("--ingress", choices=_INGRESS, default="haproxy", help="how requests reach a replica")
    options = parser.parse_args()
    direct = free_port()
    known = {"direct": direct, "beyond": direct + 20}
    os.environ.update({name: value.format(**known) for name, value in _INGRESS[options.ingress].items()})
    print(f"machine   {os.cpu_count()} cores, {platform.processor() or platform.machine()}, torch {torch.__version__}")
    bodies = [png(image) for image in demo_images(64)]
    with (
        tempfile.TemporaryDirectory(prefix="condu-bench-") as folder,
        ray_session(RayOptions(num_cpus=8), store=folder),
    ):
        found = _measure(options, bodies, Path(folder), direct if options.ingress == "direct" else None)
    print(json.dumps(found))


def _measure(options: argparse.Namespace, bodies: Sequence[bytes], folder: Path, direct: int | None) -> dict[str, Any]:
    """`direct`: the port of the replica itself, where it has one."""
    found: dict[str, Any] = {"base": options.base, "num_cpus": options.num_cpus}
    for num_tasks in options.tasks:
        store = open_store((folder / f"store-{num_tasks}").as_uri())
        manifest = publish_tasks(store, put_named_base(store, options.base, folder), num_tasks)
        if num_tasks == options.tasks[0]:
            found["raw_per_s"] = round(_raw_forward(store, manifest, options), 1)
            print(f"raw       batches of 16, {options.num_cpus:g} thread(s): {found['raw_per_s']}/s", flush=True)
            found["cold_expert_s"] = round(_cold_expert(store, manifest), 4)
            print(f"an expert that was never asked is ready after {found['cold_expert_s']:.3f} s", flush=True)
            with _plain_server(store, options) as server:
                _report(found, "x", _ladder(server, bodies, options, lambda _: "/predict"))
            if options.checkpoints:
                _ask_checkpoints(found, store, bodies, options)
        with _service(store, options, direct) as server:
            _ask_service(found, server, bodies, num_tasks, options)
    _ratios(found, options.tasks)
    return found


def _ask_checkpoints(found: dict[str, Any], store: Store, bodies: Sequence[bytes], options: argparse.Namespace) -> None:
    from ray import serve

    from benchmarks import serve_checkpoints

    port, tasks = free_port(), [f"task-{k:03d}" for k in range(options.checkpoints)]
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    server = Server(port, _RAY_MARKS)
    try:
        empty = server.memory_mb()
        serve_checkpoints.start(store.url, tasks, options.num_cpus)
        name = f"checkpoints_{len(tasks)}"
        _report(found, name, _ladder(server, bodies, options, lambda n: f"/{tasks[n % len(tasks)]}"))
        each = (server.memory_mb() - empty) / len(tasks)
        found["checkpoint_mb_each"] = round(each)
        print(f"a deployment per checkpoint: {each:.0f} MB each", flush=True)
    finally:
        serve.shutdown()


def _ask_service(
    found: dict[str, Any], server: Server, bodies: Sequence[bytes], num_tasks: int, options: argparse.Namespace
) -> None:
    cold = [_once(server.port, bodies[0], _predict(task=f"task-{k:03d}")) for k in range(1, num_tasks)]
    print(f"{num_tasks} tasks, each asked for the first time: median {np.median(cold):.3f} s, max {max(cold):.3f} s")
    found[f"first_answer_s_{num_tasks}"] = round(float(np.median(cold)), 4)
    labels = [f"thing 1 {c}" for c in range(4)]
    asked: dict[str, Ask] = {
        "task": lambda _: _predict(task="task-000"),
        "in_turn": lambda n: _predict(task=f"task-{n % num_tasks:03d}"),
        "labels": lambda _: _predict(labels=labels),
        "seen": lambda _: _predict(),
    }
    for name, ask in asked.items():
        _report(found, f"{name}_{num_tasks}", _ladder(server, bodies, options, ask))
    found[f"memory_mb_{num_tasks}"] = server.memory_mb()
    print(f"{num_tasks} tasks: all processes of the service {found[f'memory_mb_{num_tasks}']} MB", flush=True)


def _ratios(found: dict[str, Any], tasks: Sequence[int]) -> None:
    few, many = tasks[0], tasks[-1]
    found["added_p50_ms"] = round(found[f"task_{few}_p50_ms"] - found["x_p50_ms"], 2)
    found["saturation_over_x"] = round(found[f"task_{few}_saturation"] / found["x_saturation"], 2)
    found["saturation_ratio"] = round(found[f"task_{few}_saturation"] / found["raw_per_s"], 3)
    found["mixed_ratio"] = round(found[f"in_turn_{many}_saturation"] / found[f"task_{many}_saturation"], 3)


def _predict(**fields: Any) -> str:
    return f"/v1/predict?{urlencode(fields, doseq=True)}"


def _report(found: dict[str, Any], name: str, ladder: Sequence[Load]) -> None:
    for load in ladder:
        print(f"{name:<12} {load}", flush=True)
    found[f"{name}_p50_ms"] = round(ladder[0].p50_ms, 2)
    found[f"{name}_cpu_ms"] = round(min(load.cpu_ms for load in ladder), 2)
    found[f"{name}_saturation"] = round(max(load.rate for load in ladder), 1)
    found[f"{name}_failed"] = sum(load.failed for load in ladder)


def _ladder(server: Server, bodies: Sequence[bytes], options: argparse.Namespace, ask: Ask) -> list[Load]:
    _load(server, bodies, max(options.loads), _WARM_UP_S, ask)
    return [_load(server, bodies, clients, options.seconds, ask) for clients in options.loads]


def _load(server: Server, bodies: Sequence[bytes], clients: int, seconds: float, ask: Ask) -> Load:
    turns, times, failed = count(), [], []
    until, cpu_s = time.perf_counter() + seconds, server.cpu_s()

    def client() -> None:
        connection = HTTPConnection("127.0.0.1", server.port, timeout=60)
        while (begun := time.perf_counter()) < until:
            turn = next(turns)
            try:
                connection.request("POST", ask(turn), bodies[turn % len(bodies)], {"Content-Type": "image/png"})
                answer = connection.getresponse()
                answer.read()
                if answer.status != 200:
                    failed.append(answer.status)
                    continue
            except (OSError, HTTPException) as error:
                failed.append(type(error).__name__)
                connection.close()
                continue
            times.append(time.perf_counter() - begun)
        connection.close()

    threads, begun = [threading.Thread(target=client) for _ in range(clients)], time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if not times:
        raise SystemExit(f"no answer at {clients} at a time: {failed[:3]}")
    p50, p95, p99 = np.percentile(times, (50, 95, 99)) * 1000
    cpu_ms = 1000 * (server.cpu_s() - cpu_s) / len(times)
    return Load(clients, len(times) / (time.perf_counter() - begun), p50, p95, p99, cpu_ms, len(failed))


def _once(port: int, body: bytes, path: str) -> float:
    connection, begun = HTTPConnection("127.0.0.1", port, timeout=60), time.perf_counter()
    connection.request("POST", path, body, {"Content-Type": "image/png"})
    answer = connection.getresponse()
    told = answer.read()
    connection.close()
    if answer.status != 200:
        raise SystemExit(f"{path}: {answer.status} {told.decode(errors='replace')}")
    return time.perf_counter() - begun


def _raw_forward(store: Store, manifest: Manifest, options: argparse.Namespace) -> float:
    """Images per second of the base's image side in batches of 16, with nothing around it."""
    torch.set_num_threads(max(1, round(options.num_cpus)))
    clip = build_clip(manifest.base, NodeCache(store).tensors(manifest.base.weights))
    batch = clip.pixels(demo_images(16))
    rates = []
    until = time.perf_counter() + options.seconds
    while time.perf_counter() < until or len(rates) < 3:
        begun = time.perf_counter()
        clip.image_features(batch)
        rates.append(len(batch) / (time.perf_counter() - begun))
    return float(np.median(rates))


def _cold_expert(store: Store, manifest: Manifest) -> float:
    """Seconds until an expert can see images, from its trigger in the store, as a replica makes it; the median."""
    with tempfile.TemporaryDirectory() as folder:
        cache = NodeCache(store, Path(folder))
        shelf, view = ModelShelf(cache, manifest, live=True), ViewLoader(cache).load(manifest)
        seconds = []
        for task in view.tasks:
            begun = time.perf_counter()
            shelf.expert(view, task)
            seconds.append(time.perf_counter() - begun)
    return float(np.median(seconds))


@contextmanager
def _plain_server(store: Store, options: argparse.Namespace) -> Iterator[Server]:
    port = free_port()
    arguments = [store.url, str(port), str(options.num_cpus)]
    process = subprocess.Popen([sys.executable, "-m", "benchmarks.serve_plain", *arguments])
    try:
        deadline = time.monotonic() + _START_S
        while not _answers(port, "/openapi.json"):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit("the FastAPI process did not start")
            time.sleep(0.2)
        yield Server(port, (b"benchmarks.serve_plain",))
    finally:
        process.terminate()
        process.wait(20)


@contextmanager
def _service(store: Store, options: argparse.Namespace, direct: int | None) -> Iterator[Server]:
    service = ServiceOptions(address=StoreAddress(store.url), port=free_port(), num_cpus=options.num_cpus)
    from serving.app import stop  # imports Ray

    try:
        start_service(service)
        yield Server(direct or service.port, _RAY_MARKS)
    finally:
        stop()


def _answers(port: int, path: str) -> bool:
    connection = HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()


def _is_ours(process: Path) -> bool:
    """Whether it descends from this process: others may serve on this machine too."""
    parent = int(process.name)
    while parent > 1:
        if parent == os.getpid():
            return True
        parent = int((Path("/proc") / str(parent) / "stat").read_text().rpartition(")")[2].split()[1])
    return False


if __name__ == "__main__":
    main()
