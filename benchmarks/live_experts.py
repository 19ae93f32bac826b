"""Claim: a forward takes the same time however many experts its images have, in a hundredth of the rebuilt memory.

A batch of 16 images of 1 to 16 tasks: by experts that are applied to the base as they are (`fusion.answers.live`), and
by rebuilt models, one forward a task; as many models as tasks, so that their weights come from memory, as in a service.
Also an image alone, what an expert takes in memory, and how long it takes to be ready, each way. Medians of processor
time, which a busy machine does not change. The last line is JSON.

    python -m benchmarks.live_experts                 ViT-B/32 with random weights (several minutes, 4 GB of disk)
    python -m benchmarks.live_experts --base demo     the demo's, a convolutional network
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.serve_store import publish_tasks, put_named_base
from fusion.answers.clip import Clip, build_clip
from fusion.answers.folding import Folding
from fusion.answers.live import LiveSide, image_side, live_images, live_texts
from fusion.checkpoints.names import of_images
from fusion.decouple import DecoupledExpert, decoupled_tensors
from fusion.store import open_store
from fusion.store.node_cache import NodeCache
from fusion.versions.history import Versions

_BATCH = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="ViT-B-32", help="demo, or an open_clip architecture")
    parser.add_argument("--store", help="of an earlier run; default: a new one in a temporary folder")
    parser.add_argument("--repeat", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="condu-bench-") as folder:
        store = open_store(options.store or (Path(folder) / "store").as_uri())
        newest = Versions(store).newest()
        if newest is None:
            newest = publish_tasks(store, put_named_base(store, options.base, Path(folder)), _BATCH)
        cache = NodeCache(store)
        clip = build_clip(newest.base, cache.tensors(newest.base.weights))
        open_expert = partial(DecoupledExpert, cache, newest)
        folding = Folding(clip)
        tower, tasks = live_images(clip, folding), list(newest.state.tasks)[:_BATCH]
        if tower is None:
            raise SystemExit(f"experts of {newest.base.architecture} are rebuilt: there is nothing to compare")

        def ready(task: str) -> LiveSide:
            side = image_side(open_expert(task))
            assert side is not None, "a store of mode lowrank"
            return tower.prepared(side)

        def rebuilt(task: str) -> Clip:
            return folding.folded(clip.copy_with(decoupled_tensors(cache, newest, task, of_images)))

        found: dict[str, Any] = {"base": newest.base.architecture}
        found["ready_ms"] = _ms(lambda: ready(tasks[0]), options.repeat)
        found["texts_ready_ms"] = _ms(lambda: live_texts(clip, open_expert(tasks[0])), options.repeat)
        found["rebuilt_ms"] = _ms(lambda: rebuilt(tasks[0]), options.repeat)
        sides, models = [ready(task) for task in tasks], [rebuilt(task) for task in tasks]
        found["live_mb"] = round(sides[0].num_bytes / 1e6, 2)
        found["rebuilt_mb"] = round(models[0].own_bytes(clip) / 1e6, 2)
        print(
            f"an expert: live {found['live_mb']} MB, ready in {found['ready_ms']} ms (texts: {found['texts_ready_ms']})"
        )
        print(f"           rebuilt {found['rebuilt_mb']} MB, ready in {found['rebuilt_ms']} ms")
        print("tasks    images    live ms    rebuilt ms    ratio")
        pixels = torch.randn(_BATCH, 3, *clip.image_size)
        for num_images, num_tasks in ((1, 1), (_BATCH, 1), (_BATCH, 2), (_BATCH, 4), (_BATCH, 8), (_BATCH, 16)):
            images = pixels[:num_images]
            owners = [sides[image % len(sides[:num_tasks])] for image in range(num_images)]
            parts = list(zip(images.split(num_images // num_tasks), models, strict=False))
            live = _ms(lambda images=images, owners=owners: tower.image_features(images, owners), options.repeat)
            apart = _ms(lambda parts=parts: [model.image_features(part) for part, model in parts], options.repeat)
            print(f"{num_tasks:<8}{num_images:>8}{live:>11.1f}{apart:>14.1f}{apart / live:>9.2f}", flush=True)
            found[f"live_{num_images}_{num_tasks}_ms"], found[f"rebuilt_{num_images}_{num_tasks}_ms"] = live, apart
    print(json.dumps(found))


def _ms(work: Callable[[], Any], repeat: int) -> float:
    """Median processor time of this process, ms."""
    times = []
    for _ in range(repeat + 1):
        started = time.process_time()
        work()
        times.append(1000 * (time.process_time() - started))
    return round(float(np.median(times[1:])), 1)


if __name__ == "__main__":
    main()
