"""A run whose report can be checked: two fused experts, a failed task, and answers that are known by construction."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cluster.config import BaseConfig, Config, TaskConfig, UnseenConfig
from cluster.measure import MeasuredSet
from cluster.run import Run
from fusion.fuse import ExpertToFuse, fuse_experts
from fusion.store import open_store
from fusion.versions.experts import ExpertRecord, put_expert, put_expert_file
from tests.fusion.vectors import SIGNED, cache_of, random_base, random_expert
from training.answer_measure import ALL_LEARNED, EVERYTHING, LABELS, PLAIN, SEEN, TASK, AnswerMeasure, Asked
from training.evaluate import SetMeasure
from training.frozen import FROZEN
from training.kept import Kept
from training.lanes.task_queue import TaskStatus
from training.validation import ValidationFigures

TASKS = ("pets", "food")
HELD_OUT = tuple(f"held_out_{name}" for name in ("num_images", "temperature", "expert", "head", "gain", "error"))


def right(good: int, bad: int = 0) -> np.ndarray:
    """Of an image each, bool [good + bad]: the first ones were answered right."""
    return np.repeat([True, False], (good, bad))


def asked(answers: np.ndarray) -> Asked:
    """Answers that are all given with a probability of 70 %, and of 90 % without temperatures, by one expert each."""
    sure = np.full(answers.size, 0.7)
    return Asked(answers, sure, sure + 0.2, np.ones(answers.size), base=answers)


def finished_run(folder: Path) -> Run:
    """A run that fused `TASKS` in two sessions; its third task failed."""
    store = open_store((folder / "store").as_uri())
    base, base_path = random_base(folder, store)
    statuses = []
    for seed, task in enumerate(TASKS, start=1):
        local = random_expert(folder, base_path, task, seed=seed)
        assert isinstance(local.weights, Path)
        weights = put_expert_file(store, task, local.weights)
        metrics = dict(zip(HELD_OUT, (40.0, 1.3, 0.9, 0.8, 0.1, 0.2 / seed), strict=True))
        if task == "food":
            metrics |= ValidationFigures(150, 0.75, 0.9, 16, 2).metrics() | {"steps": 250.0}
        record = ExpertRecord(task, task, ("a", "b"), ("{}.",), base.sha256, weights, metrics=metrics)
        put_expert(store, record)
        fuse_experts(cache_of(store, folder), base, [ExpertToFuse.from_record(record)], mode=SIGNED)
        statuses.append(TaskStatus(task, identity=task, state="done"))
    config = Config(
        store=store.url,
        base=BaseConfig(architecture="tiny", weights="base.safetensors"),
        tasks=tuple(TaskConfig(name=name, data=name) for name in (*TASKS, "bad")),
        unseen=(UnseenConfig(name="birds", data="birds"),),
        cache=folder / "cache",
    )
    run = Run(config, store, base)
    run.statuses = [*statuses, TaskStatus("bad", state="failed", reason="there is no <image>")]
    run.seconds = {"train": 12.345, "evaluate": 2.0}
    return run


def measured_sets() -> list[MeasuredSet]:
    """What was measured of `finished_run`: its two tasks (10 and 20 test images), then the never-trained set."""
    return [
        _trained("pets", [right(8, 2), right(7, 3)], before=0, expert=right(9, 1), other=right(6, 4)),
        _trained("food", [right(4, 16), right(15, 5)], before=1, expert=right(16, 4), other=right(12, 8)),
        MeasuredSet(
            SetMeasure("birds", 4, 8, zero_shot=right(4, 4), right={"unknown": (right(5, 3),)}, routed=None),
            answers=AnswerMeasure(
                classes=("w", "x", "y", "z"),
                asked={LABELS: asked(right(5, 3)), SEEN: asked(right(0, 8)), EVERYTHING: asked(right(4, 4))},
                familiarity=np.linspace(0, 0.07, 8),
                base_confidence=np.full(8, 0.5),
            ),
            expert=None,
            modes={},
            frozen={},
        ),
    ]


def _trained(
    name: str, known: Sequence[np.ndarray], *, before: int, expert: np.ndarray, other: np.ndarray
) -> MeasuredSet:
    """A task that was learned after `before` sessions, over all classes right as often as when it is known."""
    union = tuple(answers if t >= before else None for t, answers in enumerate(known))
    sessions = SetMeasure(
        name=name,
        num_classes=2,
        num_images=expert.size,
        zero_shot=right(expert.size // 2, expert.size // 2),
        right={"known": tuple(known), "unknown": tuple(known), "union": union},
        routed=right(expert.size - 1, 1),
    )
    answers = AnswerMeasure(
        classes=("a", "b"),
        asked={way: asked(known[-1]) for way in (PLAIN, TASK, LABELS, SEEN, ALL_LEARNED, EVERYTHING)},
        familiarity=np.linspace(0.03, 1, expert.size),
        base_confidence=np.full(expert.size, 0.5),
    )
    frozen = {name: right(expert.size // 2, expert.size // 2) for name in FROZEN}
    kept = {"signed": Kept(0.9, 0.02), "another": Kept(0.75, 0.2)}
    return MeasuredSet(sessions, answers=answers, expert=expert, modes={"another": other}, frozen=frozen, kept=kept)
