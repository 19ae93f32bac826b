"""Claim: images that `condu data select` chooses teach more than as many that are drawn by chance.

For each data set: its training images without their labels are the pool (four fifths of them, by the seed), from which
2, then 4, then 8 images per class are labelled, each round chosen with what is known from those before it. What they
teach is measured with the discriminant in the base's space, which is what `train: {method: head}` publishes, on the
test images. Beside the product's choice: images by chance, and the most uncertain ones. The last line is JSON.

    python -m benchmarks.labelling               the demo's tasks, with which its constants were chosen
    python -m benchmarks.labelling FOLDER…       other data sets, one folder each
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from cluster.base_source import resolve_base
from cluster.config import load_config
from fusion.answers.class_sums import Discriminant, sum_classes
from fusion.answers.clip import Clip, build_clip
from fusion.store import open_store
from fusion.store.node_cache import NodeCache
from training.data.task_data import Reading, TaskData, load_task_data
from training.finetune import image_features
from training.selection import answer_by_labelled, entropy, select

_PER_CLASS = (2, 4, 8)
_SEEDS = (0, 1, 2)
_POOL = 0.8
Choose = Callable[["Pool", list[int], int, np.random.Generator], list[int]]


class Pool:
    """Unlabelled images: unit features of the base [N, D], and the labels [N] that whoever labels them would give."""

    def __init__(self, features: torch.Tensor, labels: torch.Tensor, num_classes: int) -> None:
        self.features, self.labels, self.num_classes = features, labels, num_classes

    def uncertainty(self, labelled: list[int]) -> torch.Tensor | None:
        """By what is labelled so far, [N]."""
        if not labelled:
            return None
        known = self.features[labelled], self.labels[labelled]
        return entropy(answer_by_labelled(self.features, *known, self.num_classes))

    def unlabelled(self, labelled: list[int]) -> np.ndarray:
        return np.setdiff1d(np.arange(len(self.labels)), labelled)


def by_chance(pool: Pool, labelled: list[int], count: int, rng: np.random.Generator) -> list[int]:
    return rng.permutation(pool.unlabelled(labelled))[:count].tolist()  # type: ignore[no-any-return]


def most_uncertain(pool: Pool, labelled: list[int], count: int, rng: np.random.Generator) -> list[int]:
    """By chance where nothing is known yet."""
    if (doubts := pool.uncertainty(labelled)) is None:
        return by_chance(pool, labelled, count, rng)
    rest = pool.unlabelled(labelled)
    return rest[doubts[rest].argsort(descending=True)[:count].numpy()].tolist()  # type: ignore[no-any-return]


def selected(pool: Pool, labelled: list[int], count: int, _: np.random.Generator) -> list[int]:
    """As `condu data select` does."""
    rest, doubts = pool.unlabelled(labelled), pool.uncertainty(labelled)
    picks = select(
        pool.features[rest],
        count,
        uncertainty=None if doubts is None else doubts[rest],
        labelled=pool.features[labelled] if labelled else None,
    )
    return [int(rest[pick.index]) for pick in picks]


_WAYS: dict[str, Choose] = {"by chance": by_chance, "most uncertain": most_uncertain, "condu data select": selected}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="*", help="data sets; default: the demo's tasks")
    parser.add_argument("--like", type=Path, default=Path("configs/demo.yaml"), help="whose base sees the images")
    options = parser.parse_args()
    config = load_config(options.like)
    with tempfile.TemporaryDirectory() as folder:
        cache = NodeCache(open_store(folder))
        base = resolve_base(config.base, cache.store)
        clip = build_clip(base, cache.tensors(base.weights))
    sources = {path.name: str(path) for path in options.folders} or {task.name: task.data for task in config.tasks}
    found = {}
    for name, source in sources.items():
        found[name] = _measure(clip, load_task_data(name, source, Reading(verify=False)))
        for way, rates in found[name].items():
            print(f"{name:12s} {way:20s}" + "".join(f"{rate:8.1f}" for rate in rates), flush=True)
    for way in _WAYS:
        mean = np.nanmean([rates[way] for rates in found.values()], axis=0)
        print(f"{'mean':12s} {way:20s}" + "".join(f"{rate:8.1f}" for rate in mean))
    print(json.dumps(found))


def _measure(clip: Clip, data: TaskData) -> dict[str, list[float]]:
    """Percent of the test images that are right after each round, mean over seeds; NaN once too few are left."""
    features, labels = image_features(clip, data), torch.from_numpy(data.look.labels)
    test = replace(data, train=data.test)
    asked, truth = image_features(clip, test), torch.from_numpy(test.look.labels)
    num_classes = len(data.classes)
    found: dict[str, list[float]] = {}
    for way, choose in _WAYS.items():
        runs = []
        for seed in _SEEDS:
            rng = np.random.default_rng(seed)
            part = rng.permutation(len(labels))[: int(_POOL * len(labels))]
            pool, labelled, rates = Pool(features[part], labels[part], num_classes), list[int](), []
            for per_class in _PER_CLASS:
                count = per_class * num_classes - len(labelled)
                if len(labelled) + count > len(part):
                    rates.append(float("nan"))
                    continue
                labelled += choose(pool, labelled, count, rng)
                known = sum_classes(pool.features[labelled], pool.labels[labelled], num_classes)
                right = Discriminant(known).scores(asked).argmax(1) == truth
                rates.append(100 * float(right.double().mean()))
            runs.append(rates)
        found[way] = np.mean(runs, axis=0).round(2).tolist()
    return found


if __name__ == "__main__":
    main()
