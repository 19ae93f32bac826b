"""Claim: adding a task to K - 1 others, in packed planes and streamed, takes less time and memory than the plain way.

The plain way is how the equations are usually written: a dict of tensors a task, boolean masks in bytes, every old task
decoupled in full before it is unified again. Both run in this machine's own process each, on the same random task
vectors; times include reading the inputs from disk and, for the packed way, publishing a version.

    python -m benchmarks.fusion_time --params 20000000 --tasks 2 6 --repeat 3
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from fusion.bases import Base, put_base
from fusion.cache import NodeCache
from fusion.fuse import ExpertToFuse, fuse_experts
from fusion.store import open_store
from fusion.tensors import TensorFile, write_tensors

_ROW = 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--params", type=int, default=20_000_000)
    parser.add_argument("--tasks", type=int, nargs="+", default=[2, 6])
    parser.add_argument("--modes", nargs="+", default=["iterative", "signed"])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--measure", nargs=3, metavar=("WAY", "FOLDER", "K"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        _measure(options.measure[0], Path(options.measure[1]), int(options.measure[2]))
        return
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout
    print("claim     adding the K-th task: packed and streamed against a dict of tensors and boolean masks")
    machine = f"{os.cpu_count()} x {platform.processor() or platform.machine()}"
    print(f"machine   {machine}, torch {torch.__version__}, commit {commit.strip()}, {options.params} parameters")

    print(f"{'tasks':>5} {'mode':<10} {'path':<7} {'median_s':>9} {'spread':>7} {'peak_gib':>9} {'ratio':>6}")
    rows = []
    for num_tasks in options.tasks:
        with tempfile.TemporaryDirectory(prefix="condu-bench-") as name:
            folder = Path(name)
            _make_inputs(folder, options.params, num_tasks)
            plain = _run("plain", folder, num_tasks, options.repeat)
            for mode in options.modes:
                packed = _run(mode, folder, num_tasks, options.repeat)
                for path, (median, spread, peak) in (("plain", plain), ("packed", packed)):
                    print(
                        f"{num_tasks:>5} {mode:<10} {path:<7} {median:>9.2f} {spread:>7.2f} {peak:>9.2f} "
                        f"{plain[0] / median:>6.1f}"
                    )
                rows.append(
                    {
                        "tasks": num_tasks,
                        "mode": mode,
                        "params": options.params,
                        "seconds": packed[0],
                        "peak_gib": packed[2],
                        "plain_seconds": plain[0],
                        "plain_peak_gib": plain[2],
                    }
                )
    print(json.dumps({"rows": rows}))


def _make_inputs(folder: Path, params: int, num_tasks: int) -> None:
    """A base and experts of `params` parameters in twelve matrices, written as safetensors."""
    generator = torch.Generator().manual_seed(0)
    shapes = {f"block.{i}.weight": (params // 12 // _ROW, _ROW) for i in range(12)}
    base = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    write_tensors(folder / "base.safetensors", base)
    for k in range(num_tasks):
        expert = {name: tensor + 0.01 * torch.randn(tensor.shape, generator=generator) for name, tensor in base.items()}
        write_tensors(folder / f"expert-{k}.safetensors", expert)


def _run(way: str, folder: Path, num_tasks: int, repeat: int) -> tuple[float, float, float]:
    """Median seconds, spread, and peak extra memory in GiB, each repetition in a process of its own."""
    seconds, peaks = [], []
    for _ in range(repeat):
        command = [sys.executable, "-m", "benchmarks.fusion_time", "--measure", way, str(folder), str(num_tasks)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        result = json.loads(done.stdout.splitlines()[-1])
        seconds.append(result["seconds"])
        peaks.append(result["peak_gib"])
    return statistics.median(seconds), max(seconds) - min(seconds), statistics.median(peaks)


def _measure(way: str, folder: Path, num_tasks: int) -> None:
    if way == "plain":
        before, peak, seconds = _plain(folder, num_tasks)
    else:
        before, peak, seconds = _packed(way, folder, num_tasks)
    print(json.dumps({"seconds": seconds, "peak_gib": (peak - before) / 2**20}))


def _packed(mode: str, folder: Path, num_tasks: int) -> tuple[int, int, float]:
    settings: dict[str, object] = {"name": mode, "bits": 2} if mode == "signed" else {"name": mode}
    with tempfile.TemporaryDirectory(prefix="store-", dir=folder) as store_folder:
        store = open_store(store_folder)
        base = put_base(store, folder / "base.safetensors")
        experts = [ExpertToFuse(f"t{k}", folder / f"expert-{k}.safetensors") for k in range(num_tasks)]
        if num_tasks > 1:  # the state before, in a process of its own: its memory is not this one's
            _in_child(store.url, base, experts[:-1], settings)
        before = _start_kib()
        start = time.perf_counter()
        fuse_experts(NodeCache(store), base, experts[-1:], mode=settings)
        return before, _peak_kib(), time.perf_counter() - start


def _in_child(url: str, base: Base, experts: list[ExpertToFuse], settings: dict[str, object]) -> None:
    pid = os.fork()
    if pid == 0:
        fuse_experts(NodeCache(open_store(url)), base, experts, mode=settings)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0


def _plain(folder: Path, num_tasks: int) -> tuple[int, int, float]:
    """The equations as they stand: unify(decoupled old task vectors + the new one). Old state made beforehand."""
    base = _load(folder / "base.safetensors")
    state = [_load(folder / f"expert-{k}.safetensors") for k in range(num_tasks - 1)]
    deltas = [{name: expert[name] - base[name] for name in base} for expert in state]
    del state
    unified, masks, scales = _unify(deltas) if deltas else ({}, [], [])
    del deltas
    before = _start_kib()
    start = time.perf_counter()
    expert = _load(folder / f"expert-{num_tasks - 1}.safetensors")
    old = [
        {name: scale * mask[name] * unified[name] for name in unified}
        for mask, scale in zip(masks, scales, strict=True)
    ]
    _unify([*old, {name: expert[name] - base[name] for name in base}])
    return before, _peak_kib(), time.perf_counter() - start


def _unify(
    deltas: list[dict[str, torch.Tensor]],
) -> tuple[dict[str, torch.Tensor], list[dict[str, torch.Tensor]], list[float]]:
    names = list(deltas[0])
    sign = {n: torch.where(sum(d[n] for d in deltas) > 0, 1.0, -1.0) for n in names}  # type: ignore[arg-type]
    masks = [{n: d[n] * sign[n] > 0 for n in names} for d in deltas]
    kept = [{n: m[n] * d[n].abs() for n in names} for d, m in zip(deltas, masks, strict=True)]
    unified = {n: sign[n] * torch.stack([k[n] for k in kept]).amax(0) for n in names}
    scales = [
        float(sum(d[n].abs().mean() for n in names) / sum((m[n] * unified[n].abs()).mean() for n in names))
        for d, m in zip(deltas, masks, strict=True)
    ]
    return unified, masks, scales


def _load(path: Path) -> dict[str, torch.Tensor]:
    file = TensorFile(path)
    return {name: file.tensor(name).clone() for name in file.specs}


def _start_kib() -> int:
    """Resident memory now, from which on the peak counts: that of making the inputs is not what is measured."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status_kib("VmRSS")


def _peak_kib() -> int:
    return _status_kib("VmHWM")


def _status_kib(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1])


if __name__ == "__main__":
    main()
