"""Claim: the service gives the plain predictor's probabilities, to 1e-5, in every label space and every mode.

Serves the store of a finished run on real replicas, and asks it and a predictor in this process about the same test
images, in random groups of 1 to 16, four requests at a time: with the task named (a task's own images), with the labels
of every learned task and every never-trained set in one request, and with nothing given. Images are those of all
configured sets in turn. `--modes` fuses the run's experts in other modes as well, in copies of its store, and asks
those. The last line is JSON.

    make demo && python -m benchmarks.service_parity demo-output/condu.yaml --modes iterative joint signed
                                                              # 500 images a mode, four minutes on 2 cores
"""

from __future__ import annotations

import argparse
import io
import json
import random
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit
from urllib.request import url2pathname

import torch
from PIL import Image

from benchmarks.finished_run import trained
from cluster.config import Config, load_config
from cluster.demo_service import free_port
from cluster.serving_config import service_options, start_service
from cluster.session import ray_session
from fusion.answers.label_spaces import Prediction, Query
from fusion.answers.predictor import Predictor
from fusion.fuse import ExpertToFuse, fuse_experts
from fusion.versions.history import Versions
from serving.client import Client
from serving.schemas import ImagePrediction, PredictResponse
from training.data.task_data import Reading, TaskData, load_task_data, load_test_data

_LARGEST_GROUP = 16
_CLIENTS = 4
"""At once, so that the service batches images of several requests."""
_LIMIT = 1e-5
_Group = list[tuple[str, bytes]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--images", type=int, default=500, help="per label space")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--modes", nargs="*", default=[], help="beside the run's own")
    options = parser.parse_args()
    config, chance = load_config(options.config), random.Random(options.seed)
    learned = [load_task_data(one.name, one.data, Reading(verify=False)) for one in config.tasks]
    foreign = [load_test_data(one.name, one.data, Reading(verify=False)) for one in config.unseen]
    labels = tuple(dict.fromkeys(name for data in [*learned, *foreign] for name in data.classes))
    everyone = _in_turn([*learned, *foreign], options.images, chance)
    questions = [("labels", Query("labels", labels=labels), group) for group in _groups(everyone, chance)]
    questions += [("seen", Query("seen", abstain=0.05), group) for group in _groups(everyone, chance)]
    for data in learned:
        own = _in_turn([data], -(-options.images // len(learned)), chance)
        questions += [("task", Query("task", task=data.name), group) for group in _groups(own, chance)]
    found: dict[str, dict[str, float]] = {}
    with TemporaryDirectory() as scratch, ray_session(config.ray, store=config.store):
        for asked in [config, *(_in_mode(config, mode, Path(scratch)) for mode in options.modes)]:
            predictor = Predictor(asked.address.open_cache())
            mode = predictor.view().manifest.mode["name"]
            found[mode], images = _compare(asked, predictor, questions)
            for space, difference in found[mode].items():
                print(f"{mode:10s}{space:8s}{images[space]:5d} images, largest difference {difference:.1e}", flush=True)
    print(json.dumps({"images": images, "largest_difference": found, "limit": _LIMIT}))
    if max(difference for mode in found.values() for difference in mode.values()) > _LIMIT:
        raise SystemExit(1)


def _in_mode(config: Config, mode: str, scratch: Path) -> Config:
    """The same experts, with all that is known of their tasks, in another mode: a copy of the store, fused anew."""
    folder = scratch / mode
    store = config.address.open()
    newest = Versions(store).newest()
    assert newest is not None
    shutil.copytree(url2pathname(urlsplit(store.url).path), folder, ignore=shutil.ignore_patterns("versions", "tmp"))
    copy = config.model_copy(update={"store": folder.as_uri()})
    cache = copy.address.open_cache()
    experts = [ExpertToFuse.from_record(record) for _, record in trained(config, newest.base)]
    fuse_experts(cache, newest.base, experts, mode={"name": mode})
    return copy


def _compare(
    config: Config, predictor: Predictor, questions: Sequence[tuple[str, Query, _Group]]
) -> tuple[dict[str, float], dict[str, int]]:
    """Largest difference by label space, and images asked."""
    options = service_options(config, port=free_port())
    largest, images = dict.fromkeys(("task", "labels", "seen"), 0.0), dict.fromkeys(("task", "labels", "seen"), 0)
    from serving.app import stop  # imports Ray

    try:
        start_service(options)
        with Client(f"http://{options.host}:{options.port}") as client, ThreadPoolExecutor(_CLIENTS) as clients:
            served_by = partial(_ask, client)
            answers = list(clients.map(served_by, questions))
        for (space, query, group), answer in zip(questions, answers, strict=True):
            wanted = predictor.predict([Image.open(io.BytesIO(image)) for _, image in group], query)
            for served, plain in zip(answer.predictions, wanted, strict=True):
                largest[space] = max(largest[space], _difference(served, plain))
            images[space] += len(group)
    finally:
        stop()
    return largest, images


def _ask(client: Client, question: tuple[str, Query, _Group]) -> PredictResponse:
    _, query, group = question
    return client.predict(group, task=query.task, labels=query.labels, abstain=query.abstain)


def _difference(served: ImagePrediction, plain: Prediction) -> float:
    """Of any probability of the five best, and of familiarity. Raises where the answers name other things."""
    said = (served.label, served.task, served.unknown, served.experts)
    if said != (plain.label, plain.task, plain.unknown, list(plain.experts)):
        raise SystemExit(f"the service answers {said}, the predictor {plain}")
    mine = {(task, label): value for task, label, value in plain.top}
    found = [abs(one.probability - mine[one.task, one.label]) for one in served.top]
    familiar = [] if plain.familiarity is None else [abs((served.familiarity or 0.0) - plain.familiarity)]
    return max([*found, *familiar])


def _in_turn(sets: Sequence[TaskData], count: int, chance: random.Random) -> _Group:
    """Test images, one of each set after the other; of each set in random order."""
    orders = [chance.sample(range(len(data.test)), len(data.test)) for data in sets]
    turns = (
        (data, order[turn])
        for turn in range(count)
        for data, order in zip(sets, orders, strict=True)
        if turn < len(order)
    )
    return [
        (f"{data.name}/test/{index}", data.test.encoded(index))
        for (data, index), _ in zip(turns, range(count), strict=False)
    ]


def _groups(images: _Group, chance: random.Random) -> Iterator[_Group]:
    start = 0
    while start < len(images):
        size = chance.randint(1, _LARGEST_GROUP)
        yield images[start : start + size]
        start += size


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
