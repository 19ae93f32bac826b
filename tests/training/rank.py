"""One of two workers of `test_finetune`: `python -m tests.training.rank FOLDER DATA NAME STATE CHANGES`."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch import distributed

from fusion.answers.clip import build_clip
from fusion.store.blobs import BlobRef
from fusion.tensors import TensorFile, write_tensors
from fusion.versions.bases import Base
from tests.tiny import MODEL_CFG, PREPROCESS_CFG
from tests.training.test_finetune import SHARED_RECIPE
from training.data.task_data import load_task_data
from training.finetune import finetune
from training.worker_group import WorkerGroup


def main(folder: Path, source: str, name: str, state: str, changes: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    workers = WorkerGroup(distributed.get_world_size(), distributed.get_rank())
    base = Base(BlobRef("", "0" * 64, 0), "tiny", MODEL_CFG, PREPROCESS_CFG)
    clip = build_clip(base, TensorFile(folder / "base.safetensors"))
    assert workers.sum(workers.rank + 1) == 3
    assert workers.any(workers.rank == 1)
    known_to_first = Path(state) if state and workers.rank == 0 else None
    recipe = replace(SHARED_RECIPE, **json.loads(changes))
    finetune(clip, load_task_data("colours", source), recipe, seed=5, state=known_to_first, workers=workers)
    write_tensors(folder / f"{name}-{workers.rank}.safetensors", dict(clip.model.state_dict()))
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
