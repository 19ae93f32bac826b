"""Claim: a forward takes the same time however many experts its images have, in a hundredth of the rebuilt memory.

A batch of 16 images of 1 to 16 tasks: by experts that are applied to the base as they are (`fusion.answers.live`), and
by rebuilt models, one forward a task. Also what an expert takes in memory, and how long it takes to be ready, each way.
Medians of processor time, which a busy machine does not change. The last line is JSON.

    python -m benchmarks.live_experts                 ViT-B/32 with random weights (several minutes, 4 GB of disk)
    python -m benchmarks.live_experts --base RN50     an architecture that is rebuilt: there is nothing to compare
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
from fusion.answers.live import image_side, live_images, live_texts
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
        tower, tasks = live_images(clip), list(newest.state.tasks)[:_BATCH]
        if tower is None:
            raise SystemExit(f"experts of {newest.base.architecture} are rebuilt: it is no vision transformer")

        def ready() -> Any:
            return image_side(open_expert(tasks[0]))

        def rebuilt(task: str) -> Clip:
            return clip.copy_with(decoupled_tensors(cache, newest, task, of_images))

        found: dict[str, Any] = {"base": newest.base.architecture}
        found["ready_ms"] = _ms(ready, options.repeat)
        found["texts_ready_ms"] = _ms(lambda: live_texts(clip, open_expert(tasks[0])), options.repeat)
        found["rebuilt_ms"] = _ms(lambda: rebuilt(tasks[0]), options.repeat)
        sides = [side for task in tasks if (side := image_side(open_expert(task))) is not None]
        models = [rebuilt(task) for task in tasks[:2]]  # any number of them takes the same time, and gigabytes
        found["live_mb"] = round(sides[0].num_bytes / 1e6, 2)
        found["rebuilt_mb"] = round(models[0].own_bytes(clip) / 1e6, 2)
        print(
            f"an expert: live {found['live_mb']} MB, ready in {found['ready_ms']} ms (texts: {found['texts_ready_ms']})"
        )
        print(f"           rebuilt {found['rebuilt_mb']} MB, ready in {found['rebuilt_ms']} ms")
        print("tasks in a batch    live ms    rebuilt ms    ratio")
        pixels = torch.randn(_BATCH, 3, *clip.image_size)
        for num_tasks in (1, 2, 4, 8, 16):
            owners = [sides[image % num_tasks] for image in range(_BATCH)]
            parts = pixels.split(_BATCH // num_tasks)
            live = _ms(lambda owners=owners: tower.image_features(pixels, owners), options.repeat)
            apart = _ms(
                lambda parts=parts: [models[i % 2].image_features(part) for i, part in enumerate(parts)], options.repeat
            )
            print(f"{num_tasks:<20}{live:>7.0f}{apart:>14.0f}{apart / live:>9.2f}", flush=True)
            found[f"live_{num_tasks}_ms"], found[f"rebuilt_{num_tasks}_ms"] = live, apart
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
