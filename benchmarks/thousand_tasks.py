"""Claim: everyday operations on a store with a thousand tasks take seconds.

Fuses many random experts of a small state dict, then times what a team does with such a store every day. Each operation
runs in this process and starts from nothing: with its own store, node cache and versions.

    python -m benchmarks.thousand_tasks                          a temporary folder
    python -m benchmarks.thousand_tasks --store s3://bucket/x    any empty store
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fusion.fuse import ExpertToFuse, fuse_experts
from fusion.store import open_store
from fusion.store.node_cache import NodeCache
from fusion.tensors import TensorSpec, TensorWriter
from fusion.versions.bases import Base, put_base
from fusion.versions.edits import remove_task, rollback
from fusion.versions.gc import collect
from fusion.versions.history import Versions
from fusion.versions.references import read_records, record_refs
from fusion.versions.verify import verify

_SHAPES = {"visual.proj": (64, 64), "text.proj": (64, 32), "bias": (64,), "logit_scale": ()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=1000)
    parser.add_argument("--store", help="an empty store; default: a temporary folder")
    parser.add_argument("--modes", nargs="+", default=["signed", "iterative"])
    options = parser.parse_args()
    print(f"{'mode':<10} {'what':<26} {'seconds':>8}")
    rows = []
    with tempfile.TemporaryDirectory(prefix="condu-bench-") as name:
        for mode in options.modes:
            folder = Path(name) / mode
            folder.mkdir()
            url = f"{options.store or folder / 'store'}/{mode}"
            for what, seconds in _measure(folder, url, mode, options.tasks):
                print(f"{mode:<10} {what:<26} {seconds:>8.2f}", flush=True)
                rows.append({"mode": mode, "tasks": options.tasks, "what": what, "seconds": seconds})
    print(json.dumps({"rows": rows}))


def _measure(folder: Path, url: str, mode: str, num_tasks: int) -> list[tuple[str, float]]:
    settings: dict[str, Any] = {"name": mode, "bits": 2} if mode == "signed" else {"name": mode}
    base_path = _write(folder / "base.safetensors", 0)
    experts = [ExpertToFuse(f"task-{k:04d}", _write(folder / f"{k}.safetensors", k)) for k in range(1, num_tasks + 2)]

    def cache() -> NodeCache:
        return NodeCache(open_store(url), folder / "cache")

    def versions() -> Versions:
        return Versions(open_store(url))

    base: Base = put_base(open_store(url), base_path)
    fuse_experts(cache(), base, experts[:1], mode=settings)
    steps: list[tuple[str, Callable[[], Any]]] = [
        (f"fuse {num_tasks - 1} in one call", lambda: fuse_experts(cache(), base, experts[1:-1], mode=settings)),
        ("fuse one more", lambda: fuse_experts(cache(), base, experts[-1:], mode=settings)),
        ("newest version", lambda: versions().newest()),
        ("show: every record", lambda: read_records(open_store(url), record_refs(_newest(versions())))),
        ("remove a task", lambda: remove_task(versions(), "task-0007")),
        ("roll back", lambda: rollback(versions(), 3)),
        ("gc, dry run", lambda: collect(versions(), dry_run=True)),
        ("verify", lambda: verify(versions())),
    ]
    found = []
    for what, step in steps:
        start = time.perf_counter()
        step()
        found.append((what, time.perf_counter() - start))
    return found


def _newest(versions: Versions) -> Any:
    newest = versions.newest()
    assert newest is not None, "a version was published"
    return newest


def _write(path: Path, seed: int) -> Path:
    random = np.random.default_rng(seed)
    writer = TensorWriter(path, {name: TensorSpec("F32", shape) for name, shape in _SHAPES.items()})
    for name, shape in _SHAPES.items():
        writer.write(name, random.standard_normal(int(np.prod(shape)), dtype=np.float32))
    writer.finish()
    return path


if __name__ == "__main__":
    main()
