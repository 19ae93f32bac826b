"""Callers at a steady rate, and what they should be told: for tests in which something happens to a service."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx

from fusion.answers.label_spaces import Query
from fusion.answers.predictor import Predictor
from fusion.store import Store
from fusion.store.node_cache import NodeCache
from serving.client import Client, ServiceError
from tests.serving.helpers import pictures, png

IMAGES = pictures("red", "circle")
BODIES = [png(image) for image in IMAGES]
QUESTIONS: dict[str, tuple[dict[str, Any], Query]] = {
    "task": ({"task": "colours"}, Query("task", task="colours")),
    "labels": ({"labels": ["red", "circle", "a tree"]}, Query("labels", labels=("red", "circle", "a tree"))),
    "seen": ({}, Query("seen")),
}
Tops = list[list[tuple[str | None, str, float]]]


@dataclass
class Load:
    """Callers that ask at a steady rate until they are told to stop, and what they were told.

    `answers` are the versions and candidates that a question got. `refused` are what callers without retries got
    instead, `lost` what the client with its retries could not get, `pinned` the version that some of them name, and
    `of_pinned` the statuses that they got.
    """

    url: str
    answers: list[tuple[str, int, Tops]] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    of_pinned: Counter[int] = field(default_factory=Counter)
    done: threading.Event = field(default_factory=threading.Event)
    pinned: int = 0

    def plain(self, each_s: float) -> None:
        """Asks once each time, with httpx."""
        with httpx.Client(base_url=self.url, timeout=60, trust_env=False) as http:
            for name in self._turns(each_s):
                files = [("image", body) for body in BODIES]
                try:
                    answer = http.post("/v1/predict", files=files, data=QUESTIONS[name][0])
                except httpx.HTTPError as error:
                    self.refused.append(type(error).__name__)
                    continue
                if answer.status_code == 200:
                    self._note(name, answer.json())
                else:
                    self.refused.append(f"{answer.status_code} {answer.text[:200]}")

    def patient(self, each_s: float) -> None:
        """Asks with condu's client."""
        with Client(self.url) as client:
            for name in self._turns(each_s):
                try:
                    self._note(name, client.predict(BODIES, **QUESTIONS[name][0]).model_dump())
                except ServiceError as error:
                    self.lost.append(str(error))

    def of_one_version(self, each_s: float) -> None:
        """Asks one version, whatever happens. After its end replicas may still hold it, and answer; or it is gone."""
        with Client(self.url) as client:
            for name in self._turns(each_s):
                try:
                    answer = client.predict(BODIES, **QUESTIONS[name][0], version=self.pinned)
                    self._note(name, answer.model_dump())
                    self.of_pinned[200] += 1
                except ServiceError as error:
                    if error.status != 410:
                        self.lost.append(str(error))
                    self.of_pinned[error.status or 0] += 1

    def _turns(self, each_s: float) -> Iterator[str]:
        names, start = list(QUESTIONS), time.monotonic()
        for number in range(1_000_000):
            if self.done.wait(max(0.0, start + number * each_s - time.monotonic())):
                return
            yield names[number % len(names)]

    def _note(self, name: str, answer: dict[str, Any]) -> None:
        tops = [[(c["task"], c["label"], c["probability"]) for c in one["top"]] for one in answer["predictions"]]
        self.answers.append((name, answer["version"], tops))


class Truth:
    """What the plain predictor says, by version and question."""

    def __init__(self, store: Store) -> None:
        self._predictor = Predictor(NodeCache(store))
        self.tops: dict[tuple[str, int], Tops] = {}

    def note(self, version: int) -> None:
        view = self._predictor.view(version)
        for name, (_, query) in QUESTIONS.items():
            found = self._predictor.predict(IMAGES, query, view=view)
            self.tops[name, version] = [list(one.top) for one in found]

    def agrees(self, name: str, version: int, tops: Tops) -> bool:
        wanted = self.tops[name, version]
        return all(
            (task, label) == (t, text) and abs(p - probability) < 1e-4
            for mine, theirs in zip(tops, wanted, strict=True)
            for (task, label, probability), (t, text, p) in zip(mine, theirs, strict=True)
        )


def until(holds: Callable[[], bool], what: str, limit_s: float = 60) -> None:
    deadline = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)
