"""Claim: a batch in parts and recomputed activations take less memory for more time; bf16 saves time on a CPU with AMX.

Steps of an untrained ViT-B/16 on noise, each way in a process of its own: seconds of processor time per step (medians,
which a busy machine hardly changes) and how much its memory grows from before the first step. Weights and optimizer are
part of that, and the same everywhere. `--isa AVX512_CORE` shows the same CPU without its bf16 instructions. The last
line is JSON.

    python -m benchmarks.train_options                              ViT-B/16, batches of 16 (a quarter of an hour)
    python -m benchmarks.train_options --only fp32 bf16 --isa AVX512_CORE
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.train_data import write_folders
from training.malloc import MALLOC_ENVIRONMENT

WAYS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "bf16": {"precision": "bf16"},
    "in 4 parts": {"gradient_accumulation": 4},
    "recomputed": {"gradient_checkpointing": True},
    "both": {"gradient_accumulation": 4, "gradient_checkpointing": True},
    "images alone": {"text_lr": 0.0},
}
_BATCH = 16
_STEPS = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--base", default="ViT-B-16", help="an open_clip architecture")
    parser.add_argument("--isa", help="the most that oneDNN may use of the CPU, such as AVX512_CORE")
    parser.add_argument("--way", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        print(json.dumps(_measured(options.base, WAYS[options.way])))
        return
    found = {}
    isa = {"ONEDNN_MAX_CPU_ISA": options.isa} if options.isa else {}
    print(f"{options.base}, {_BATCH} images a step, {options.isa or 'all of the CPU'}")
    print(f"{'way':<14} {'s a step':>9} {'GiB':>6}")
    for way in options.only:
        command = [sys.executable, "-m", "benchmarks.train_options", "--way", way, "--base", options.base]
        environment = {**os.environ, **MALLOC_ENVIRONMENT, "MALLOC_TRIM_THRESHOLD_": "0", **isa, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        found[way] = json.loads(done.stdout.splitlines()[-1])
        print(f"{way:<14} {found[way]['step_s']:>9.2f} {found[way]['gib']:>6.2f}", flush=True)
    print(json.dumps({"benchmark": "train_options", "base": options.base, "isa": options.isa, **found}))


def _measured(base: str, changes: dict[str, Any]) -> dict[str, float]:
    import torch

    from fusion.answers.clip import build_clip, describe_architecture
    from fusion.store.blobs import BlobRef
    from fusion.versions.bases import Base
    from training.data.task_data import load_task_data
    from training.finetune import finetune
    from training.recipe import Recipe

    torch.set_num_threads(1)
    name, model_cfg, preprocess_cfg = describe_architecture(base)
    clip = build_clip(Base(BlobRef("", "0" * 64, 0), name, model_cfg, preprocess_cfg), None)
    recipe = Recipe(steps=_STEPS, batch_size=_BATCH, warmup_steps=1, augment="none", **changes)
    ends = [time.process_time()]
    with tempfile.TemporaryDirectory(prefix="condu-bench-") as folder:
        data = load_task_data("noise", write_folders(Path(folder) / "data", num_train=_BATCH, num_test=4, side=224))
        before = _peak_bytes()
        finetune(clip, data, recipe, seed=0, on_progress=lambda *_: ends.append(time.process_time()))
    steps = [end - start for start, end in pairwise(ends)]
    return {"step_s": round(statistics.median(steps[1:]), 2), "gib": round((_peak_bytes() - before) / 2**30, 2)}


def _peak_bytes() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    main()
