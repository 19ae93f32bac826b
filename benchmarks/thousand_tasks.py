"""Claim: everyday operations on a store with a thousand tasks take seconds.

Fuses many random experts, of a small state dict or of a real base, then times what a team does with such a store every
day. Each operation runs in this process and starts from nothing: with its own store, node cache and versions. What a
service keeps in memory is at the end: every trigger as it is stored, and one of them decoded.

    python -m benchmarks.thousand_tasks                          a temporary folder
    python -m benchmarks.thousand_tasks --store s3://bucket/x    any empty store
    python -m benchmarks.thousand_tasks --modes lowrank --base demo/base/condu-tiny.safetensors
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.synthetic import random_base, spectral_expert
from fusion.decouple import DecoupledExpert
from fusion.fuse import ExpertToFuse, fuse_experts
from fusion.store import open_store
from fusion.store.blobs import check_sha256
from fusion.store.node_cache import NodeCache
from fusion.tensors import TensorFile
from fusion.versions.bases import Base, put_base
from fusion.versions.edits import remove_task, rollback
from fusion.versions.gc import collect
from fusion.versions.history import Versions
from fusion.versions.manifest import Manifest
from fusion.versions.references import read_records, record_refs, whole_records
from fusion.versions.verify import verify

_SHAPES = {"visual.proj": (64, 64), "text.proj": (64, 32), "bias": (64,), "logit_scale": ()}
_AT_ONCE = 50
"""Experts in one call: so many files exist at a time."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=1000)
    parser.add_argument("--store", help="an empty store; default: a temporary folder")
    parser.add_argument("--modes", nargs="+", default=["lowrank", "signed", "iterative"])
    parser.add_argument("--base", type=Path, help="weights of a base; default: a small state dict")
    options = parser.parse_args()
    print(f"{'mode':<10} {'what':<26} {'seconds':>8}")
    rows = []
    with tempfile.TemporaryDirectory(prefix="condu-bench-") as name:
        for mode in options.modes:
            folder = Path(name) / mode
            folder.mkdir()
            url = f"{options.store or folder / 'store'}/{mode}"
            for what, seconds in _measure(folder, url, mode, options):
                print(f"{mode:<10} {what:<26} {seconds:>8.2f}", flush=True)
                rows.append({"mode": mode, "tasks": options.tasks, "what": what, "seconds": seconds})
    print(json.dumps({"rows": rows}))


def _measure(folder: Path, url: str, mode: str, options: argparse.Namespace) -> list[tuple[str, float]]:
    settings: dict[str, Any] = {"name": mode, "bits": 2} if mode == "signed" else {"name": mode}
    base_path = options.base or folder / "base.safetensors"
    if not options.base:
        random_base(base_path, _SHAPES)
    theta, num_tasks = TensorFile(base_path), options.tasks

    def cache() -> NodeCache:
        return NodeCache(open_store(url), folder / "cache")

    def versions() -> Versions:
        return Versions(open_store(url))

    base: Base = put_base(open_store(url), base_path)

    def fuse(first: int, last: int) -> float:
        """Fuse some tasks in one call. Writing their experts is not timed."""
        paths = [folder / f"{k}.safetensors" for k in range(first, last)]
        for k, path in zip(range(first, last), paths, strict=True):
            spectral_expert(path, theta, power=1.0, noise=0.05, seed=k)
        experts = [ExpertToFuse(f"task-{k:04d}", path) for k, path in zip(range(first, last), paths, strict=True)]
        start = time.perf_counter()
        fuse_experts(cache(), base, experts, mode=settings)
        seconds = time.perf_counter() - start
        for path in paths:
            path.unlink()
        return seconds

    fuse(0, 1)
    found = [
        (f"fuse {num_tasks - 1}, {_AT_ONCE} at once", sum(fuse(*part) for part in _parts(1, num_tasks))),
        ("fuse one more", fuse(num_tasks, num_tasks + 1)),
    ]
    steps: list[tuple[str, Callable[[], Any]]] = [
        ("newest version", lambda: versions().newest()),
        ("show: every record", lambda: read_records(open_store(url), record_refs(_newest(versions())))),
        ("remove a task", lambda: remove_task(versions(), "task-0007")),
        ("roll back", lambda: rollback(versions(), 3)),
        ("gc, dry run", lambda: collect(versions(), dry_run=True)),
        ("verify", lambda: verify(versions())),
        ("read every trigger", lambda: _read_triggers(cache(), versions())),
        ("decode one", lambda: _decode(cache(), _fullest(versions()), "task-0001")),
    ]
    for what, step in steps:
        start = time.perf_counter()
        result = step()
        found.append((what, time.perf_counter() - start))
        if what == "read every trigger":
            found.append(("- their size, MB", sum(len(one) for one in result) / 1e6))
    return found


def _parts(first: int, last: int) -> list[tuple[int, int]]:
    return [(start, min(start + _AT_ONCE, last)) for start in range(first, last, _AT_ONCE)]


def _fullest(versions: Versions) -> Manifest:
    """The version with the most tasks: the newest one may be rolled back."""
    return max(map(versions.read, versions.all_numbers()), key=lambda manifest: len(manifest.state.tasks))


def _read_triggers(cache: NodeCache, versions: Versions) -> list[bytes]:
    """Every trigger in memory, as it is stored, each verified."""
    found = []
    for record in whole_records(cache.store, record_refs(_fullest(versions))).values():
        if record.trigger:
            found.append(cache.store.get(record.trigger.key))
            check_sha256(hashlib.sha256(found[-1]).hexdigest(), record.trigger, cache.store.url)
    return found


def _newest(versions: Versions) -> Any:
    newest = versions.newest()
    assert newest is not None, "a version was published"
    return newest


def _decode(cache: NodeCache, manifest: Manifest, task: str) -> None:
    expert = DecoupledExpert(cache, manifest, task)
    expert.bench.map(expert.decoder.delta)


if __name__ == "__main__":
    main()
