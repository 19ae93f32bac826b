"""What several views of one object bring: a finished run's test images asked alone, in twos and in fours.

Two kinds of views: augmented (the image, two crops to nine tenths, and mirrored: what a caller could do
who has one photograph), and different images of one class (what a caller has who photographs one object several
times, at best: here they are different objects). Accuracy per object, mean over tasks, with its 95 % interval; the
task named, and with nothing said. The last line is JSON.

    python -m benchmarks.views demo-output/condu.yaml     # a few minutes on 2 cores
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from cluster.config import load_config
from cluster.run import jobs
from cluster.showcase import spread
from fusion.answers.label_spaces import VIEWS, Query
from fusion.answers.predictor import Predictor
from fusion.store.node_cache import NodeCache
from training.data.task_data import Reading, TaskData

Objects = list[tuple[int, list[Image.Image]]]
"""Labels and views."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--objects", type=int, default=60, help="of each task, at most")
    options = parser.parse_args()
    config = load_config(options.config)
    predictor = Predictor(NodeCache(config.address.open(), config.cache))
    data = [job.load(Reading(config.address, verify=False)) for job in jobs(config)]
    print(f"{'views of an object':<26} {'combined by':<14} {'task named':>22} {'nothing said':>22}", flush=True)
    rows = []
    kinds: dict[str, Callable[[TaskData, int, int], Objects]] = {"augmented": _augmented, "different": _different}
    for kind, make in kinds.items():
        for count in (1, 2, 4):
            objects = {one.name: make(one, count, options.objects) for one in data}
            for how in (None,) if count == 1 else VIEWS:
                row: dict[str, Any] = {"views": kind, "count": count, "combine": how}
                for space in ("task", "seen"):
                    row[space] = _accuracy(predictor, data, objects, space, how)
                rows.append(row)
                said = " ".join("{:6.1f} ({:4.1f} to {:5.1f})".format(*row[space]) for space in ("task", "seen"))
                print(f"{f'{count}, {kind}':<26} {how or 'alone':<14} {said}", flush=True)
    print(json.dumps({"rows": rows}))


def _accuracy(
    predictor: Predictor, data: Sequence[TaskData], objects: dict[str, Objects], space: str, how: str | None
) -> tuple[float, float, float]:
    """Mean over tasks of the share of objects that are answered rightly, in percent, and its interval."""
    shares, variances = [], []
    for one in data:
        query = Query(space, task=one.name if space == "task" else None, views=how)
        right = np.array([_right(predictor, one, label, views, query) for label, views in objects[one.name]])
        shares.append(right.mean())
        variances.append(right.var(ddof=1) / len(right))
    mean, margin = float(np.mean(shares)), 1.96 * math.sqrt(sum(variances)) / len(shares)
    return round(100 * mean, 2), round(100 * (mean - margin), 2), round(100 * (mean + margin), 2)


def _right(predictor: Predictor, data: TaskData, label: int, views: list[Image.Image], query: Query) -> float:
    found = predictor.predict(views, query)[0]
    return float(found.label == data.classes[label] and found.task == data.name)


def _places(data: TaskData, most: int) -> list[int]:
    return sorted(spread(len(data.test), most))


def _augmented(data: TaskData, count: int, most: int) -> Objects:
    """Objects of which there is one image."""
    return [(int(data.test.labels[index]), _variants(data.test.image(index))[:count]) for index in _places(data, most)]


def _variants(image: Image.Image) -> list[Image.Image]:
    width, height = image.size
    right, bottom = round(0.9 * width), round(0.9 * height)
    corners = [image.crop((0, 0, right, bottom)), image.crop((width - right, height - bottom, width, height))]
    return [image, corners[0], corners[1], ImageOps.mirror(image)]


def _different(data: TaskData, count: int, most: int) -> Objects:
    """Each image with the next ones of its class."""
    found: Objects = []
    for index in _places(data, most):
        label = int(data.test.labels[index])
        same = [int(i) for i in np.flatnonzero(data.test.labels == label)]
        if len(same) < 4:  # so that every count is asked about the same objects
            continue
        start = same.index(index)
        found.append((label, [data.test.image(same[(start + k) % len(same)]) for k in range(count)]))
    return found


if __name__ == "__main__":
    main()
