"""Where a prediction's time goes inside a replica: its stages, one image at a time, without HTTP and Ray around it.

The medians of what `ray_condu_stage_seconds` counts, by label space, on the store of a finished run. The last line is
JSON.

    make demo && python -m benchmarks.serve_stages demo-output/condu.yaml     # a minute
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks.serve_store import demo_images, png
from cluster.config import Config, load_config
from cluster.serving_config import service_options
from fusion.answers.label_spaces import Query
from serving.images import Upload
from serving.metrics import NoMetrics
from serving.models import Models
from serving.service import Service
from serving.stages import Stage
from serving.watch import VersionWatcher

_IMAGES, _WARM_UP = 150, 50


class _Recorded(NoMetrics):
    def __init__(self) -> None:
        self.ms: dict[str, list[float]] = defaultdict(list)

    def answered(self, label_space: str, stages: Mapping[Stage, float], familiarity: Sequence[float]) -> None:
        for stage, seconds in stages.items():
            self.ms[stage].append(1000 * seconds)
        self.ms["all"].append(1000 * sum(stages.values()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    config = load_config(parser.parse_args().config)
    torch.set_num_threads(1)
    first, second = (task.name for task in config.tasks[:2])
    found = asyncio.run(_measure(config, first, second))
    for space, stages in found.items():
        print(f"{space:8s}" + "  ".join(f"{stage} {ms:.1f}" for stage, ms in stages.items()) + "  ms")
    print(json.dumps(found))


async def _measure(config: Config, first: str, second: str) -> dict[str, dict[str, float]]:
    options = service_options(config)
    cache, metrics = config.address.open_cache(), _Recorded()
    watcher = VersionWatcher(cache, poll_s=options.poll_s)
    await watcher.poll()
    service = Service(options, watcher, Models(options, cache, metrics), metrics)
    view = await watcher.view(None)
    labels = (*view.tasks[first].classes[:2], *view.tasks[second].classes[:2])
    found = {}
    for query in (Query("task", task=first), Query("labels", labels=labels), Query("seen")):
        metrics.ms.clear()
        images = demo_images(_IMAGES)
        for number, image in enumerate(images):
            if number == _WARM_UP:
                metrics.ms.clear()
            await service.predict([Upload("image", png(image))], query)
        found[query.label_space] = {stage: round(float(np.median(ms)), 2) for stage, ms in metrics.ms.items()}
    service.models.batcher.close()
    return found


if __name__ == "__main__":
    main()
