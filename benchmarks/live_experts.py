"""Claim: an image takes less in a forward of many experts than in one of its own, in a fraction of the memory.

Batches of 16 images, in turn of 1 to 100 tasks: by experts that are applied to the base as they are
(`fusion.answers.live`), and by built models, one forward per task of the batch. Every task has tensors of its own, so
that weights come from memory as in a service; where 100 models do not fit, there are as many as do. Also an image
alone, what an expert takes in memory, and how long it takes to be ready, each way. Medians of processor time, which a
busy machine changes less than its clock. The last line is JSON.

    python -m benchmarks.live_experts                 ViT-B/32 with random weights (several minutes, 8 GB of memory)
    python -m benchmarks.live_experts --base demo     the demo's, a convolutional network
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import cycle, islice
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

_BATCH, _TASKS = 16, 100
_MODEL_BYTES = 6 << 30
"""Of all built models."""


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
            newest = publish_tasks(store, put_named_base(store, options.base, Path(folder)), _TASKS)
        cache = NodeCache(store)
        clip = build_clip(newest.base, cache.tensors(newest.base.weights))
        open_expert = partial(DecoupledExpert, cache, newest)
        folding = Folding(clip)
        tower, tasks = live_images(clip, folding), list(newest.state.tasks)[:_TASKS]
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
        found["build_ms"] = _ms(lambda: rebuilt(tasks[0]), options.repeat)
        sides, models = [ready(task) for task in tasks], [rebuilt(tasks[0])]
        fitting = _MODEL_BYTES // models[0].own_bytes(clip)
        models += [rebuilt(task) for task in tasks[1:fitting]]
        found["live_mb"] = round(sides[0].num_bytes / 1e6, 2)
        found["built_mb"] = round(models[0].own_bytes(clip) / 1e6, 2)
        print(
            f"an expert: live {found['live_mb']} MB, ready in {found['ready_ms']} ms (texts: {found['texts_ready_ms']})"
        )
        print(f"           built {found['built_mb']} MB, ready in {found['build_ms']} ms")
        print("tasks    images    live ms    built ms    ratio")
        pixels = torch.randn(_BATCH, 3, *clip.image_size)
        for num_images, num_tasks in ((1, 1), *((_BATCH, num) for num in (1, 2, 4, 8, 16, 32, len(tasks)))):
            images, turns = pixels[:num_images], cycle(range(num_tasks))

            def live(images: torch.Tensor = images, turns: Iterator[int] = turns, num_tasks: int = num_tasks) -> None:
                batch = list(islice(turns, min(num_tasks, len(images))))
                tower.image_features(images, [sides[batch[i % len(batch)]] for i in range(len(images))])

            def built(images: torch.Tensor = images, turns: Iterator[int] = turns, num_tasks: int = num_tasks) -> None:
                batch = list(islice(turns, min(num_tasks, len(images))))
                for task, part in zip(batch, images.split(len(images) // len(batch)), strict=True):
                    models[task].image_features(part)

            key = f"{num_images}_{num_tasks}_ms"
            found[f"live_{key}"] = _ms(live, options.repeat)
            found[f"built_{key}"] = _ms(built, options.repeat) if num_tasks <= len(models) else None
            line = f"{num_tasks:<8}{num_images:>8}{found[f'live_{key}']:>11.1f}"
            if found[f"built_{key}"]:
                line += f"{found[f'built_{key}']:>12.1f}{found[f'built_{key}'] / found[f'live_{key}']:>9.2f}"
            print(line, flush=True)
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
