"""Claim: rule `matched` answers images of no named task better than the paper's `mean`, with a quarter of the forwards.

Reads the store of a finished run and measures its newest version on every test set of its configuration, once for each
rule: learned tasks with the task named, with its labels given, with nothing given; labels of all learned tasks in one
request; never-trained sets; expert forwards; calibration. Trains nothing, needs no Ray. The last line is JSON.

    make demo && python -m benchmarks.aggregation_rules demo-output/condu.yaml     # within two minutes on 2 cores
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cluster.config import load_config
from cluster.report.answer_figures import calibration
from cluster.report.estimates import paired
from fusion.answers.clip import build_clip
from fusion.answers.options import PredictOptions
from fusion.answers.rules import RULES
from fusion.answers.view import ViewLoader
from fusion.versions.history import Versions
from training.answer_measure import ALL_LEARNED, LABELS, SEEN, TASK, AnswerMeasure, every_way
from training.data.task_data import Reading, load_task_data, load_test_data
from training.evaluate import load_set, measure_together


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    config = load_config(parser.parse_args().config)
    start = time.perf_counter()
    cache = config.address.open_cache()
    newest = Versions(cache.store).newest()
    if newest is None:
        raise SystemExit(f"{config.store} is empty: run the configuration first")
    view, base = ViewLoader(cache).load(newest), build_clip(newest.base, cache.tensors(newest.base.weights))
    learned = [
        load_task_data(task.name, task.data, Reading(verify=False)) for task in config.tasks if task.name in view.tasks
    ]
    foreign = [load_test_data(task.name, task.data, Reading(verify=False)) for task in config.unseen]
    found: dict[str, list[AnswerMeasure]] = {rule: [] for rule in RULES}
    for data in [*learned, *foreign]:
        loaded = load_set(base, data)
        rules = [every_way(loaded, view, PredictOptions(rule=rule)) for rule in RULES]  # type: ignore[arg-type]
        for rule, answers in zip(RULES, measure_together(cache, loaded, rules), strict=True):
            found[rule].append(answers)
        print(f"measured {data.name} after {time.perf_counter() - start:.0f} s", flush=True)
    figures = {rule: _figures(answers[: len(learned)], answers[len(learned) :]) for rule, answers in found.items()}
    for name in next(iter(figures.values())):
        print(f"{name:34s}" + "".join(f"{rule} {values[name]!s:28s}" for rule, values in figures.items()))
    print(json.dumps({"seconds": round(time.perf_counter() - start, 1), **figures}))


def _figures(learned: list[AnswerMeasure], foreign: list[AnswerMeasure]) -> dict[str, Any]:
    def mean(sets: list[AnswerMeasure], way: str) -> float:
        return round(100 * float(np.mean([one.asked[way].right.mean() for one in sets])), 1)

    def gain(sets: list[AnswerMeasure]) -> list[float] | None:
        found = paired([(one.asked[LABELS].right, one.asked[LABELS].base) for one in sets])
        return found and [round(value, 1) for value in (found.mean, found.low, found.high)]

    forwards = np.concatenate([one.asked[LABELS].forwards for one in learned])
    return {
        "task named": mean(learned, TASK),
        "its labels given": mean(learned, LABELS),
        "nothing given (task and class)": mean(learned, SEEN),
        "all learned labels in one request": mean(learned, ALL_LEARNED),
        "never trained": mean(foreign, LABELS) if foreign else None,
        "never trained, against the base": gain(foreign),
        "expert forwards per image": round(float(forwards.mean()), 2),
        **{
            f"calibration error, {way}": round(calibration([one.asked[way] for one in learned]).ece, 1)
            for way in (TASK, LABELS, SEEN)
        },
    }


if __name__ == "__main__":
    torch.set_num_threads(2)
    main()
