"""Claim: the plain mean of base and top-K experts is not the best rule for images of unknown task.

Reads the store of a finished run, computes every model's logits once for every test set of its configuration, and
compares rules on them: on the never-trained tasks (where the base alone is the bar) and on the trained ones with the
task unknown. The gated rules weigh an expert by sigmoid((route score - threshold) / width); the threshold is a
quantile of the scores of the task's own training images. Quantiles and widths are compared on the test sets
themselves: the best row is a hint, not a result.

    make demo && python -m benchmarks.aggregation_rules demo-output/condu.yaml
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from cluster.config import load_config
from fusion.answers.predictor import ExpertModel, Predictor
from fusion.answers.prototypes import route_scores, top_tasks
from fusion.decouple import decoupled_tensors
from training.data import TaskData, load_task_data, load_test_data
from training.evaluate import load_pixels

_TOP_K = 4
_MAX_TRAIN_IMAGES = 150


@dataclass(frozen=True)
class Measured:
    """One test set: route scores [N, T], logits of base and experts [1 + T, N, C], labels [N]."""

    scores: torch.Tensor
    logits: torch.Tensor
    labels: torch.Tensor

    def consulted(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Indices [N, K] of the consulted experts, their scores [N, K] and logits [N, K, C]."""
        best = top_tasks(self.scores, _TOP_K)
        rows = torch.arange(len(best))[:, None]
        return best, self.scores[rows, best], self.logits[1:].permute(1, 0, 2)[rows, best]


Rule = Callable[[Measured], torch.Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    config = load_config(parser.parse_args().config)
    cache = config.address.open_cache()
    predictor = Predictor(cache)
    view = predictor.view()
    base = predictor.shelf.base
    trained = {
        task.name: load_task_data(task.name, task.data, classes=task.classes, templates=task.templates, verify=False)
        for task in config.tasks
        if task.name in view.tasks
    }
    unseen = {task.name: load_test_data(task.name, task.data, verify=False) for task in config.unseen}
    models = [base]
    for name in view.routable():
        models.append(ExpertModel(base.clip.copy_with(decoupled_tensors(cache, view.manifest, name))))
    measured = {name: _measure(models, data, view.routable()) for name, data in {**trained, **unseen}.items()}
    own = [_own_scores(base, trained[name], view.routable(), i) for i, name in enumerate(view.routable())]
    rules: dict[str, Rule] = {
        "base alone": lambda m: m.logits[0],
        "plain mean": _plain_mean,
        "half base, half experts": lambda m: (m.logits[0] + m.consulted()[2].mean(1)) / 2,
    }
    for quantile in (0.05, 0.25, 0.5):
        thresholds = torch.tensor([scores.quantile(quantile) for scores in own])
        rules[f"gated, quantile {quantile}, width 0.05"] = _gated(thresholds, 0.05)
    print(f"claim     the plain mean is not the best rule (version {view.version} of {config.store})")
    print(f"{'rule':<34} {'never trained':>14} {'trained, unknown':>17}   per never-trained task: {', '.join(unseen)}")
    rows = []
    for title, rule in rules.items():
        accuracies = {name: _accuracy(rule(m), m.labels) for name, m in measured.items()}
        means = [sum(accuracies[name] for name in names) / len(names) for names in (unseen, trained)]
        each = " ".join(f"{accuracies[name]:5.1f}" for name in unseen)
        print(f"{title:<34} {means[0]:>14.1f} {means[1]:>17.1f}   {each}")
        rows.append({"rule": title, "unseen": means[0], "trained_unknown": means[1]})
    print(json.dumps({"claim": "aggregation_rules", "rows": rows}))


def _plain_mean(m: Measured) -> torch.Tensor:
    return torch.cat([m.logits[0][:, None], m.consulted()[2]], dim=1).mean(1)


def _gated(thresholds: torch.Tensor, width: float) -> Rule:
    def rule(m: Measured) -> torch.Tensor:
        best, scores, logits = m.consulted()
        weights = torch.sigmoid((scores - thresholds[best]) / width)
        return (m.logits[0] + (weights[..., None] * logits).sum(1)) / (1 + weights.sum(1, keepdim=True))

    return rule


def _measure(models: list[ExpertModel], data: TaskData, prototypes: dict[str, torch.Tensor]) -> Measured:
    pixels = load_pixels(models[0].clip, data)
    features = models[0].clip.image_features(pixels)
    logits = [
        model.feature_logits(
            features if model is models[0] else model.clip.image_features(pixels), data.classes, data.templates
        )
        for model in models
    ]
    return Measured(route_scores(features, prototypes), torch.stack(logits), torch.from_numpy(data.test.labels))


def _own_scores(base: ExpertModel, data: TaskData, prototypes: dict[str, torch.Tensor], column: int) -> torch.Tensor:
    step = max(1, len(data.train) // _MAX_TRAIN_IMAGES)
    pixels = base.clip.pixels([data.train.image(i) for i in range(0, len(data.train), step)])
    return route_scores(base.clip.image_features(pixels), prototypes)[:, column]


def _accuracy(scores: torch.Tensor, labels: torch.Tensor) -> float:
    return 100 * float((scores.argmax(1) == labels).float().mean())


if __name__ == "__main__":
    main()
