"""A data set that is read in blocks although it is small, and one process that trains on it or reads it:

python -m tests.training.streamed train FOLDER SOURCE    fine-tunes the base of FOLDER/store on it
python -m tests.training.streamed read SOURCE            prints by how many bytes reading one epoch grew the process
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import torch

from fusion.answers.clip import build_clip
from fusion.store import open_store
from fusion.store.node_cache import NodeCache
from tests.tiny import tiny_base
from training import samplers
from training.batches import Batches
from training.data import blocks, images
from training.data.task_data import Reading, load_task_data
from training.expert import train_expert
from training.recipe import Recipe
from training.worker_group import WorkerGroup

RECIPE = Recipe(steps=60, batch_size=8, lr=1e-3, warmup_steps=2, augment="none", flip=False, save_every_steps=10)


def small(*, block_bytes: int, window_bytes: int) -> None:
    """Nothing is kept, and blocks and windows are small."""
    images.KEPT_BYTES = 0
    blocks.BLOCK_BYTES = block_bytes
    blocks._ASKED_FOR_BYTES = 2 * block_bytes
    samplers.WINDOW_BYTES = window_bytes


def main() -> None:
    torch.set_num_threads(1)
    what, *arguments = sys.argv[1:]
    if what == "train":
        small(block_bytes=8 << 10, window_bytes=32 << 10)
        folder, source = arguments
        store = open_store(f"file://{folder}/store")
        data = load_task_data("t", source)
        assert data.train.blocks.streamed
        train_expert(store, NodeCache(store), tiny_base(store), data, RECIPE, seed=0)
        return
    small(block_bytes=4 << 20, window_bytes=16 << 20)
    (source,) = arguments
    store = open_store(f"{Path(source).parent.as_uri()}/store")
    base = tiny_base(store)
    clip = build_clip(base, NodeCache(store).tensors(base.weights))
    data = load_task_data("t", source, Reading(verify=False))
    assert data.train.blocks.streamed
    recipe = Recipe(steps=len(data.train) // 8, batch_size=8, warmup_steps=2)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with Batches(clip, data.train, recipe, seed=0, workers=WorkerGroup()) as batches:
        for step in range(recipe.steps):
            batches.batch(step)
    print(1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))


if __name__ == "__main__":
    main()
