"""Metrics that Ray exports for Prometheus, as `ray_condu_…`; docs/operating.md has them all.

A histogram's `_sum` is what Ray makes of its buckets, each value taken for the middle of its own: what has to be exact
is a counter, and buckets of small numbers have these in their middle.

Recording one value takes 5 microseconds, and a prediction of one image records 19
(`python -m benchmarks.metrics_cost`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from serving.metrics import Metrics, Model, Outcome
from serving.stages import Stage

LOAD_SECONDS = [0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60]
REQUEST_SECONDS = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30]
STAGE_SECONDS = [0.0005, 0.001, 0.0025, *REQUEST_SECONDS]
READ_SECONDS = [0.001, 0.005, 0.025, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30]
BATCH_IMAGES = [0.5, 1.5, 2.5, 4.5, 8.5, 16.5, 32.5, 64.5, 128.5]
BATCH_TASKS = [0.5, 1.5, 2.5, 3.5, 4.5, 5.5, 6.5, 8.5, 16.5, 32.5]
FAMILIARITY = [0.01, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1]


class ServeMetrics(Metrics):
    """For a replica of Ray Serve, whose tags Serve adds."""

    def __init__(self) -> None:
        from ray.serve import metrics

        Counter: Any = metrics.Counter  # its annotation allows one tag, its code any number
        Histogram: Any = metrics.Histogram  # and its annotation has no integers
        self._requests = Counter(
            "condu_requests", description="Predictions by outcome.", tag_keys=("label_space", "status")
        )
        self._images = Counter("condu_images", description="Images predicted.", tag_keys=("label_space",))
        self._forwards = Counter(
            "condu_expert_forwards", description="Forwards of experts, one per image.", tag_keys=("label_space",)
        )
        self._seconds = Histogram(
            "condu_request_seconds",
            description="Duration of successful predictions.",
            boundaries=REQUEST_SECONDS,
            tag_keys=("label_space",),
        )
        self._stages = Histogram(
            "condu_stage_seconds",
            description="Duration of each stage of successful predictions.",
            boundaries=STAGE_SECONDS,
            tag_keys=("stage",),
        )
        self._familiarity = Histogram(
            "condu_familiarity",
            description="How familiar images were: 5 % of what was learned is below 0.05.",
            boundaries=FAMILIARITY,
            tag_keys=("label_space",),
        )
        self._version = metrics.Gauge("condu_version", description="The version being served.")
        self._asked = Counter(
            "condu_expert_requests", description="Requests by whether the expert was in memory.", tag_keys=("outcome",)
        )
        self._loads = Histogram(
            "condu_expert_load_seconds", description="Time to rebuild an expert.", boundaries=LOAD_SECONDS
        )
        self._reads = Histogram(
            "condu_trigger_read_seconds", description="Time to read and verify a trigger.", boundaries=READ_SECONDS
        )
        self._read_bytes = Counter("condu_trigger_read_bytes", description="Bytes of the triggers read.")
        self._forwarded = Counter("condu_forwards", description="Images that a model saw.", tag_keys=("model",))
        self._batch_images = Histogram(
            "condu_batch_images", description="Images in a forward.", boundaries=BATCH_IMAGES, tag_keys=("model",)
        )
        self._batch_tasks = Histogram(
            "condu_batch_tasks", description="Tasks whose experts share a forward.", boundaries=BATCH_TASKS
        )
        self._texts = Counter(
            "condu_text_requests",
            description="Classes by whether their text features were in memory.",
            tag_keys=("outcome",),
        )
        self._rows = Counter("condu_log_rows", description="Rows of the request log by outcome.", tag_keys=("outcome",))
        self._text_bytes = metrics.Gauge("condu_text_bytes", description="Bytes of text features in memory.")

    def requested(self, label_space: str, status: int) -> None:
        self._requests.inc(tags={"label_space": label_space, "status": str(status)})

    def predicted(self, label_space: str, seconds: float, num_images: int, expert_forwards: int) -> None:
        self._images.inc(num_images, tags={"label_space": label_space})
        if expert_forwards:  # Ray refuses to count 0
            self._forwards.inc(expert_forwards, tags={"label_space": label_space})
        self._seconds.observe(seconds, tags={"label_space": label_space})

    def answered(self, label_space: str, stages: Mapping[Stage, float], familiarity: Sequence[float]) -> None:
        for stage, seconds in stages.items():
            self._stages.observe(seconds, tags={"stage": stage})
        tags = {"label_space": label_space}
        for value in familiarity:
            self._familiarity.observe(value, tags=tags)

    def serving(self, version: int) -> None:
        self._version.set(version)

    def expert_asked(self, *, hit: bool) -> None:
        self._asked.inc(tags={"outcome": "hit" if hit else "miss"})

    def expert_loaded(self, seconds: float) -> None:
        self._loads.observe(seconds)

    def trigger_read(self, seconds: float, num_bytes: int) -> None:
        self._reads.observe(seconds)
        self._read_bytes.inc(num_bytes)

    def forward(self, model: Model, num_images: int, num_tasks: int) -> None:
        tags: dict[str, str] = {"model": model}
        self._forwarded.inc(num_images, tags=tags)
        self._batch_images.observe(num_images, tags=tags)
        if num_tasks:
            self._batch_tasks.observe(num_tasks)

    def texts_asked(self, num_kept: int, num_new: int) -> None:
        for outcome, count in (("hit", num_kept), ("miss", num_new)):
            if count:
                self._texts.inc(count, tags={"outcome": outcome})

    def texts_kept(self, num_bytes: int) -> None:
        self._text_bytes.set(num_bytes)

    def logged(self, outcome: Outcome, num_rows: int) -> None:
        if num_rows:
            self._rows.inc(num_rows, tags={"outcome": outcome})
