"""Claim: `condu drift` stays quiet where images come from what a task was trained on, and notices others among them.

On the demo's tasks, with its base and without a service. Each task's training images are cut in two at random: evidence
of 70 %, and 30 % that are asked about, all tasks in one log. How often is a task called drifted, the task named or not,
and by a two-sided test in its place? Then with a part of what is asked replaced by images of sets that were never
trained, and with the tasks' test images in place of the cut. The last line is JSON.

    python -m benchmarks.drift_alarms     # three minutes on 2 cores
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from fusion.answers.clip import Clip, build_clip
from fusion.answers.drift import Drift, Thresholds, measure_drift
from fusion.answers.evidence import measure_evidence
from fusion.answers.router import Router
from fusion.store import open_store
from fusion.store.node_cache import NodeCache
from fusion.versions.bases import put_base
from training.data.task_data import load_task_data, load_test_data
from training.finetune import image_features

DEMO = Path("demo")
SHARES = (0.1, 0.2, 0.4)


@dataclass(frozen=True)
class Features:
    """Of one task, in the base's space: of its training images with their labels, and of its test images."""

    train: torch.Tensor
    labels: torch.Tensor
    num_classes: int
    test: torch.Tensor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cuts", type=int, default=30)
    options = parser.parse_args()
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        clip = _base(Path(folder))
        tasks = {path.name: _features(clip, path) for path in sorted((DEMO / "tasks").iterdir())}
        foreign = torch.cat([_foreign(clip, path) for path in sorted((DEMO / "unseen").iterdir())])
    found: dict[str, list[float]] = {}

    def note(name: str, drift: Drift) -> None:
        found.setdefault(name, []).extend(float(one.drifted) for one in drift.tasks if one.p_value is not None)

    for _ in range(options.cuts):
        router, asked = _cut(tasks, random)
        note("images of the task, named", _asked(router, asked, named=True))
        note("images of the tasks, none named", _asked(router, asked, named=False))
        note("the same, by a two-sided test", _two_sided(router, asked))
        for share in SHARES:
            mixed = {name: _mixed(own, foreign, share, random) for name, own in asked.items()}
            note(f"{share:.0%} of them of sets never trained, named", _asked(router, mixed, named=True))
    for name, alarms in found.items():
        print(f"{name:<46} {np.mean(alarms):6.1%} of {len(alarms)} tasks called drifted")
    router = Router({name: measure_evidence(one.train, one.labels, one.num_classes) for name, one in tasks.items()})
    tested = _asked(router, {name: one.test for name, one in tasks.items()}, named=True)
    for one in tested.tasks:
        verdict = "drift" if one.drifted else ""
        print(f"test images of {one.task:<10} below 0.05: {one.unfamiliar:5.1%}  shift {one.shift:.2f}  {verdict}")
    rates = {name: round(float(np.mean(alarms)), 4) for name, alarms in found.items()}
    print(json.dumps({"claim": "drift_alarms", "rates": rates, "test": {t.task: t.shift for t in tested.tasks}}))


def _base(folder: Path) -> Clip:
    about = json.loads((DEMO / "base" / "condu-tiny.json").read_text())
    store = open_store(str(folder))
    weights = DEMO / "base" / "condu-tiny.safetensors"
    model_cfg, preprocess_cfg = about["model_cfg"], about["preprocess_cfg"]
    base = put_base(store, weights, architecture="condu-tiny", model_cfg=model_cfg, preprocess_cfg=preprocess_cfg)
    return build_clip(base, NodeCache(store).tensors(base.weights))


def _features(clip: Clip, path: Path) -> Features:
    data = load_task_data(path.name, str(path), verify=False)
    test = image_features(clip, replace(data, train=data.test))
    return Features(image_features(clip, data), torch.from_numpy(data.train.labels), len(data.classes), test)


def _foreign(clip: Clip, path: Path) -> torch.Tensor:
    data = load_test_data(path.name, str(path), verify=False)
    return image_features(clip, replace(data, train=data.test))


def _cut(tasks: dict[str, Features], random: np.random.Generator) -> tuple[Router, dict[str, torch.Tensor]]:
    """Evidence of a part of every task's images, and the other part."""
    evidence, asked = {}, {}
    for name, one in tasks.items():
        order = torch.from_numpy(random.permutation(len(one.train)))
        kept, left = order[: len(order) * 7 // 10], order[len(order) * 7 // 10 :]
        evidence[name] = measure_evidence(one.train[kept], one.labels[kept], one.num_classes)
        asked[name] = one.train[left]
    return Router(evidence), asked


def _mixed(own: torch.Tensor, foreign: torch.Tensor, share: float, random: np.random.Generator) -> torch.Tensor:
    count = round(share * len(own))
    others = foreign[torch.from_numpy(random.choice(len(foreign), count, replace=False))]
    return torch.cat([own[count:], others])


def _asked(router: Router, asked: dict[str, torch.Tensor], *, named: bool) -> Drift:
    owners = [name for name, images in asked.items() for _ in range(len(images))]
    among: Sequence[Sequence[str] | None] = [[name] if named else None for name in owners]
    features = torch.cat(list(asked.values()))
    return measure_drift(router, features, among, [named] * len(owners), Thresholds())


def _two_sided(router: Router, asked: dict[str, torch.Tensor]) -> Drift:
    """As `_asked` of named tasks, judged by the larger of both one-sided statistics."""
    drift = _asked(router, asked, named=True)
    tasks = []
    for one in drift.tasks:
        evidence, count = router.evidence(one.task), one.num_images
        ordered = np.sort(1 - one.familiarity)
        below, above = np.arange(count) / count, np.arange(1, count + 1) / count
        largest = float(max((ordered - below).max(), (above - ordered).max()))
        size = len(evidence.held_out) * count / (len(evidence.held_out) + count)
        p_value = min(1.0, 2 * math.exp(-2 * size * largest**2) * len(drift.tasks))
        drifted = p_value < Thresholds().alpha and largest >= Thresholds().min_shift
        tasks.append(replace(one, p_value=p_value, drifted=drifted))
    return replace(drift, tasks=tuple(tasks))


if __name__ == "__main__":
    main()
