"""Claim: adding a task takes about as long as reading and writing it, in a few chunks of memory.

For each mode a store is filled with random task vectors in the shapes of a real model, one task after another. At
each K the last task is fused again several times, each time in a separate process. The baseline, plain, is the
equations as they are usually written: a dict of tensors and boolean masks per task, every old task decoupled in full
before all are unified again, everything in memory from the start.

  seconds        the pass: inputs from files (in the page cache, they were just written), arithmetic, outputs to files
  fuse           the whole call: every input's sha256 verified, the pass, outputs hashed and fsynced, published
  command        `condu fuse` from the shell, including Python's start and imports
  copy           the same files copied, inputs, and outputs with fsync; the fastest of twice as many runs, because a
                 copy takes several times as long if a virtual machine must request its pages from the host
  plain          arithmetic only, on tensors in memory, the faster of two runs
  peak           growth of the process's resident memory

    python -m benchmarks.fusion_time            the full table: about a quarter of an hour and 10 GB of disk
    python -m benchmarks.fusion_time --models ViT-B-16 --tasks 2 6 --repeat 1
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fusion.decouple import read_record
from fusion.fuse import ExpertToFuse, fuse_experts
from fusion.kernels import available_cores
from fusion.store import open_store
from fusion.store.node_cache import NodeCache
from fusion.tensors import TensorFile, TensorSpec, TensorWriter, write_tensors
from fusion.versions.bases import get_base, put_base
from fusion.versions.history import Versions, manifest_key

_GIB = 2.0**30
_TASKS = {"ViT-B-16": (2, 6, 11, 50), "ViT-L-14": (2, 11)}
_TRIAL_PARAMS = (4_000_000, 16_000_000)
_COMMAND_AT = 11
"""The number of tasks at which the command itself and a copy are timed."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(_TASKS), help="open_clip architectures")
    parser.add_argument("--tasks", type=int, nargs="+", help="numbers of tasks; default: 2 6 11 50 (ViT-L-14: 2 11)")
    parser.add_argument("--modes", nargs="+", default=["iterative", "signed"])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where to work; default: a temporary folder")
    options = parser.parse_args()
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    commit = git.stdout.strip() or "unknown"
    print(f"machine   {available_cores()} x {_processor()}, commit {commit}; median of {options.repeat}")
    print(
        f"{'model':<9} {'mode':<10} {'tasks':>5} {'seconds':>8} {'spread':>7} {'GB/s':>5} {'fuse':>6} "
        f"{'peak GiB':>8} | {'plain s':>8} {'peak GiB':>8} | {'faster':>6} {'memory':>7} | {'command':>7} {'copy':>6}"
    )
    rows = []
    with tempfile.TemporaryDirectory(prefix="condu-bench-", dir=options.folder) as name:
        for model in options.models:
            rows += _model(Path(name) / model, model, options)
    print(json.dumps({"rows": rows}))


def _model(folder: Path, model: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    folder.mkdir()
    counts = sorted(options.tasks or _TASKS.get(model, _TASKS["ViT-B-16"]))
    shapes = model_shapes(model)
    experts = Experts(folder, shapes)
    plain = {count: _plain(folder, shapes, count) for count in counts}
    rows = []
    for mode in options.modes:
        store = folder / f"store-{mode}"
        for count in range(1, counts[-1] + 1):
            expert = experts.write(count)
            _drop_old(store, count - 2)
            if count not in counts:
                _measure(store, experts.base, expert, mode, count)
                continue
            runs = []
            for _ in range(options.repeat):
                _undo(store, count)
                runs.append(_measure(store, experts.base, expert, mode, count))
            row = _row(model, mode, count, experts.params, runs, plain[count])
            if count == _COMMAND_AT:
                row |= _command(store, experts.base, expert, count, options.repeat)
            _print(model, row, runs)
            rows.append(row)
        shutil.rmtree(store)
    shutil.rmtree(folder)
    return rows


class Experts:
    """A random base and experts in the shapes of a real model. One expert's file exists at a time."""

    def __init__(self, folder: Path, shapes: dict[str, tuple[int, ...]]) -> None:
        self.base = folder / "base.safetensors"
        self.params = sum(int(np.prod(shape)) for shape in shapes.values())
        self._expert = folder / "expert.safetensors"
        self._specs = {name: TensorSpec("F32", shape) for name, shape in shapes.items()}
        random = np.random.default_rng(0)
        largest = max(spec.elements for spec in self._specs.values())
        self._noise = 0.01 * random.standard_normal(2 * largest, dtype=np.float32)
        self._write(self.base, lambda name, spec: random.standard_normal(spec.elements, dtype=np.float32))

    def write(self, number: int) -> Path:
        """The expert of a task: the base plus noise, a slice of one long vector, another one per tensor."""
        random, base = np.random.default_rng(number), TensorFile(self.base)

        def values(name: str, spec: TensorSpec) -> np.ndarray:
            start = int(random.integers(0, self._noise.size - spec.elements + 1))
            return base.float32(name).reshape(-1) + self._noise[start : start + spec.elements]

        self._write(self._expert, values)
        return self._expert

    def _write(self, path: Path, values: Any) -> None:
        writer = TensorWriter(path, self._specs)
        for name, spec in self._specs.items():
            writer.write(name, values(name, spec))
        writer.finish()


def _row(
    model: str, mode: str, count: int, params: int, runs: Sequence[dict[str, Any]], plain: tuple[Any, Any]
) -> dict[str, Any]:
    def median(key: str) -> float:
        return statistics.median(run[key] for run in runs)

    return {
        "model": model,
        "tasks": count,
        "mode": mode,
        "params": params,
        "seconds": median("seconds"),
        "peak_gib": median("peak_gib"),
        "plain_seconds": plain[0],
        "plain_peak_gib": plain[1],
        "fuse_seconds": median("fuse_seconds"),
        "gb_per_s": median("touched") / median("seconds") / 1e9,
        "trigger_bytes": runs[-1]["trigger_bytes"],
    }


def _print(model: str, row: dict[str, Any], runs: Sequence[dict[str, Any]]) -> None:
    times = [run["seconds"] for run in runs]
    plain = row["plain_seconds"]
    beside = f"{'–':>8} {'–':>8} | {'–':>6} {'–':>7}"
    if plain is not None:
        less = row["peak_gib"] / row["plain_peak_gib"]
        beside = f"{plain:>8.2f} {row['plain_peak_gib']:>8.2f} | {plain / row['seconds']:>6.1f} {less:>7.3f}"
    command = f"{row['command_seconds']:>7.2f} {row['copy_seconds']:>6.2f}" if "copy_seconds" in row else ""
    print(
        f"{model:<9} {row['mode']:<10} {row['tasks']:>5} {row['seconds']:>8.2f} {max(times) - min(times):>7.2f} "
        f"{row['gb_per_s']:>5.1f} {row['fuse_seconds']:>6.2f} {row['peak_gib']:>8.2f} | {beside} | {command}",
        flush=True,
    )


def _measure(store: Path, base: Path, expert: Path, mode: str, count: int) -> dict[str, Any]:
    """Fuse one expert in a separate process."""
    arguments = (str(store), str(base), str(expert), mode, count)
    code = f"from benchmarks.fusion_time import fuse_one; fuse_one(*{arguments!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def fuse_one(store_path: str, base_path: str, expert: str, mode: str, count: int) -> None:
    """Fuse, and print the cost. The kernels are loaded beforehand, by fusing a tiny model."""
    settings: dict[str, Any] = {"name": mode, "bits": 2} if mode == "signed" else {"name": mode}
    _warm_up(settings)
    store = open_store(store_path)
    newest = Versions(store).newest()
    base = newest.base if newest else put_base(store, Path(base_path))
    task = ExpertToFuse(f"t{count}", Path(expert))
    result = fuse_experts(NodeCache(store), base, [task], mode=settings)
    cost = result.cost
    record = read_record(NodeCache(store), result.manifest, task.task)
    before = newest.state if newest else None
    touched = 2 * base.weights.bytes + sum(ref.bytes for ref in cost.written)
    if before and mode == "iterative":
        touched += sum(ref.bytes for ref in before.shared.values()) + (count - 1) * record.trigger.bytes
    elif mode == "signed":
        touched += result.manifest.state.shared[result.manifest.state.reads[0]].bytes
    print(
        json.dumps(
            {
                "seconds": cost.pass_seconds,
                "fuse_seconds": cost.seconds,
                "peak_gib": cost.extra_bytes / _GIB,
                "touched": touched,
                "trigger_bytes": record.trigger.bytes,
            }
        )
    )


def _warm_up(settings: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as name:
        import torch

        folder = Path(name)
        for file, value in (("base", 0.0), ("a", 1.0), ("b", -2.0)):
            write_tensors(folder / f"{file}.safetensors", {"x": torch.full((8, 8), value)})
        store = open_store(str(folder / "store"))
        base = put_base(store, folder / "base.safetensors")
        for task in "ab":
            fuse_experts(NodeCache(store), base, [ExpertToFuse(task, folder / f"{task}.safetensors")], mode=settings)


def _command(store: Path, base: Path, expert: Path, count: int, repeat: int) -> dict[str, float]:
    """`condu fuse` from the shell, and the same bytes copied."""
    condu = Path(sys.executable).parent / "condu"
    seconds, copies = [], []
    for _ in range(repeat):
        _undo(store, count)
        before = {info.key for info in open_store(str(store)).list("blobs/")}
        os.sync()  # this command should not wait for earlier writes
        start = time.perf_counter()
        line = [str(condu), "fuse", "--store", str(store), "--expert", f"t{count}={expert}"]
        subprocess.run(line, check=True, capture_output=True)
        seconds.append(time.perf_counter() - start)
        local = open_store(str(store))
        newest = Versions(local).read(count - 1)
        inputs = [base, expert, *(store / ref.key for ref in newest.state.shared.values())]
        if newest.mode["name"] == "iterative":
            inputs += [store / read_record(NodeCache(local), newest, t).trigger.key for t in newest.state.tasks]
        else:
            inputs = inputs[:2] + inputs[-1:]  # only the newest profile
        outputs = [store / info.key for info in local.list("blobs/") if info.key not in before]
        copies += [_copy(inputs, outputs, store / "tmp") for _ in range(2)]
    return {"command_seconds": statistics.median(seconds), "copy_seconds": min(copies)}


def _copy(inputs: Sequence[Path], outputs: Sequence[Path], folder: Path) -> float:
    """Seconds to copy files, outputs with fsync. Outputs come first: an fsync may wait for other writes."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        os.sync()
        start = time.perf_counter()
        for number, path in enumerate([*outputs, *inputs]):
            copy = Path(name) / str(number)
            shutil.copyfile(path, copy)
            if number < len(outputs):
                with copy.open("rb") as file:
                    os.fsync(file.fileno())
        return time.perf_counter() - start


def _drop_old(store: Path, number: int) -> None:
    """Remove the shared blobs of a version that its successor does not use: fifty tau would fill the disk."""
    if number < 1:
        return
    local = open_store(str(store))
    old, parent = (Versions(local).read(n) for n in (number, number + 1))
    for ref in old.state.shared.values():
        if ref not in parent.state.shared.values():
            local.delete(ref.key)


def _undo(store: Path, count: int) -> None:
    """Remove the task's version and its blobs, so that it can be fused again."""
    local = open_store(str(store))
    if local.head(manifest_key(count)) is None:
        return
    newest, parent = (Versions(local).read(number) for number in (count, max(count - 1, 1)))
    record = read_record(NodeCache(local), newest, f"t{count}")
    kept = {ref.key for ref in parent.state.blobs()} if count > 1 else set()
    local.delete(manifest_key(count))
    for ref in [*newest.state.shared.values(), newest.state.tasks[f"t{count}"].record, record.trigger]:
        if ref.key not in kept:
            local.delete(ref.key)
    assert get_base(local, newest.base.sha256)


def _plain(folder: Path, shapes: dict[str, tuple[int, ...]], count: int) -> tuple[float | None, float | None]:
    """Seconds and peak GiB of the plain code; None if runs at small sizes predict too little memory."""
    params = sum(int(np.prod(shape)) for shape in shapes.values())
    trials = [_run_plain({"x": (size // 1000, 1000)}, count)["total_gib"] for size in _TRIAL_PARAMS]
    slope = (trials[1] - trials[0]) / (_TRIAL_PARAMS[1] - _TRIAL_PARAMS[0])
    if trials[1] + slope * (params - _TRIAL_PARAMS[1]) > 0.95 * _available_gib():
        return None, None
    runs = [_run_plain(shapes, count) for _ in range(2)]
    return min(run["seconds"] for run in runs), runs[-1]["peak_gib"]


def _run_plain(shapes: dict[str, tuple[int, ...]], count: int) -> dict[str, float]:
    code = f"from benchmarks.plain_fusion import main; main({shapes!r}, {count})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def model_shapes(model: str) -> dict[str, tuple[int, ...]]:
    """The tensors of an open_clip architecture, without making them."""
    import open_clip
    import torch

    with torch.device("meta"):
        return {
            name: tuple(tensor.shape)
            for name, tensor in open_clip.CLIP(**open_clip.get_model_config(model)).state_dict().items()
            if tensor.is_floating_point()
        }


def _available_gib() -> float:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("MemAvailable")).split()[1]) / 2**20


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(": ", 1)[1] for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    main()
