"""Claim: a task of a large model becomes a `lowrank` trigger, and an expert again, in seconds and little memory.

Task vectors in the shapes of a real model with a known spectrum: in every matrix, singular values fall as i^-power, and
noise of a given share of their energy lies on all directions. A real expert of these sizes is not at hand; how fast a
spectrum falls decides the rank, and with it bytes and time.

  encode      `fuse_experts` on a store that has the base: every input's hash, the encoding, the blob, the commit
  exact       the encoding alone, by eigenvectors of each matrix's Gram matrix
  randomised  the encoding alone, as the mode does it: by a random range where that is faster
  decode      the whole task vector from the store: its trigger read and verified, every piece decoded
  peak        growth of the process's resident memory over `encode`

    python -m benchmarks.lowrank_time                         both models: five minutes and 3 GB of disk
    python -m benchmarks.lowrank_time --models ViT-B-16
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.fusion_time import model_shapes
from benchmarks.synthetic import CHANGE, random_base, spectral_expert
from fusion.decouple import DecoupledExpert, read_record
from fusion.factors import components
from fusion.factors.algebra import open_algebra
from fusion.factors.symbols import SymbolWriter
from fusion.fuse import ExpertToFuse, fuse_experts
from fusion.kernels import available_cores
from fusion.store import open_store
from fusion.store.node_cache import NodeCache
from fusion.tensors import TensorFile
from fusion.versions.bases import put_base

_SPECTRA = {"1/i + 5 % noise": (1.0, 0.05), "i^-0.7 + 10 % noise": (0.7, 0.10)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["ViT-B-16", "ViT-L-14"], help="open_clip architectures")
    parser.add_argument("--folder", type=Path, help="where to work; default: a temporary folder")
    options = parser.parse_args()
    print(f"{available_cores()} cores")
    print(
        f"{'model':<9} {'spectrum':<20} {'encode s':>9} {'peak GiB':>8} | {'exact s':>8} {'randomised':>10} "
        f"{'MB':>6} {'MB':>6} | {'decode s':>8} {'rank':>5} {'error':>6}"
    )
    rows = []
    for model in options.models:
        for spectrum in _SPECTRA:
            with tempfile.TemporaryDirectory(prefix="condu-bench-", dir=options.folder) as name:
                rows.append(_row(Path(name), model, spectrum))
    print(json.dumps({"rows": rows}))


def _row(folder: Path, model: str, spectrum: str) -> dict[str, Any]:
    base, expert = folder / "base.safetensors", folder / "expert.safetensors"
    random_base(base, model_shapes(model))
    power, noise = _SPECTRA[spectrum]
    spectral_expert(expert, TensorFile(base), power=power, noise=noise)
    code = f"from benchmarks.lowrank_time import fuse_one; fuse_one({str(folder)!r}, {str(base)!r}, {str(expert)!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    row = {"model": model, "spectrum": spectrum, **json.loads(done.stdout.splitlines()[-1])}
    row |= _encodings(base, expert)
    print(
        f"{model:<9} {spectrum:<20} {row['encode_s']:>9.2f} {row['peak_gib']:>8.2f} | {row['exact_s']:>8.2f} "
        f"{row['randomised_s']:>10.2f} {row['exact_mb']:>6.2f} {row['randomised_mb']:>6.2f} | {row['decode_s']:>8.2f} "
        f"{row['mean_rank']:>5.0f} {row['relative_error']:>6.3f}",
        flush=True,
    )
    return row


def fuse_one(folder: str, base_path: str, expert: str) -> None:
    """Fuse, decode, and print the cost."""
    store = open_store(str(Path(folder) / "store"))
    base = put_base(store, Path(base_path))
    result = fuse_experts(NodeCache(store), base, [ExpertToFuse("task", Path(expert))], mode={"name": "lowrank"})
    start = time.perf_counter()
    decoupled = DecoupledExpert(NodeCache(store), result.manifest, "task")
    decoupled.bench.map(decoupled.decoder.delta)
    seconds = time.perf_counter() - start
    record = read_record(NodeCache(store), result.manifest, "task")
    print(
        json.dumps(
            {
                "encode_s": result.cost.seconds,
                "peak_gib": result.cost.extra_bytes / 2**30,
                "decode_s": seconds,
                "trigger_mb": record.trigger.bytes / 1e6,
            }
        )
    )


def _encodings(base_path: Path, expert_path: Path) -> dict[str, float]:
    """Seconds, bytes and quality of every matrix's components alone, in both ways of finding directions."""
    base, expert = TensorFile(base_path), TensorFile(expert_path)
    matrices = [name for name in base.fused_names() if len(base.specs[name].shape) > 1 and "token" not in name]
    algebra = open_algebra("cpu")
    found: dict[str, float] = {}
    for way in ("exact", "randomised"):
        seconds, bits, ranks, error, whole = 0.0, 0, [], 0.0, 0.0
        for name in matrices:
            rows = base.specs[name].num_rows
            delta = (expert.float32(name) - base.float32(name)).reshape(rows, -1)
            start = time.perf_counter()
            one = components.encode(delta, CHANGE, algebra, exact=way == "exact")
            seconds += time.perf_counter() - start
            assert one is not None
            writer = SymbolWriter()
            for side in (*one.left, *one.right):
                writer.add(side)
            bits += sum(stream.size for stream in writer.streams().values())
            ranks.append(len(one.left))
            decoded = one.rows(0, rows, np.dtype(np.float64), algebra)
            error += float(np.square(delta - decoded, dtype=np.float64).sum())
            whole += float(np.square(delta, dtype=np.float64).sum())
        found |= {f"{way}_s": seconds, f"{way}_mb": bits / 1e6, f"{way}_error": (error / whole) ** 0.5}
        found |= {"mean_rank": float(np.mean(ranks)), "relative_error": (error / whole) ** 0.5}
    return found


if __name__ == "__main__":
    main()
