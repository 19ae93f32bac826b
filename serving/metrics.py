"""What a service counts. Labels come from small closed sets, never from task names or a request's text."""

from __future__ import annotations

from typing import Any, Protocol

LOAD_SECONDS = [0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60]
REQUEST_SECONDS = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30]


class Metrics(Protocol):
    """What a replica reports."""

    def requested(self, label_space: str, status: int) -> None: ...

    def predicted(self, label_space: str, seconds: float, num_images: int, expert_forwards: int) -> None: ...

    def serving(self, version: int) -> None: ...

    def expert_asked(self, *, hit: bool) -> None: ...

    def expert_loaded(self, seconds: float) -> None: ...


class NoMetrics:
    """For a service outside a cluster."""

    def requested(self, label_space: str, status: int) -> None: ...

    def predicted(self, label_space: str, seconds: float, num_images: int, expert_forwards: int) -> None: ...

    def serving(self, version: int) -> None: ...

    def expert_asked(self, *, hit: bool) -> None: ...

    def expert_loaded(self, seconds: float) -> None: ...


class ServeMetrics:
    """`ray_condu_requests_total`, `ray_condu_request_seconds`, `ray_condu_images_total`,
    `ray_condu_expert_forwards_total`, `ray_condu_version`, `ray_condu_expert_requests_total` by outcome (hit, miss),
    `ray_condu_expert_load_seconds`."""

    def __init__(self) -> None:
        from ray.serve import metrics

        Counter: Any = metrics.Counter  # its annotation allows one tag, its code any number
        self._requests = Counter(
            "condu_requests", description="Predictions by outcome.", tag_keys=("label_space", "status")
        )
        self._images = Counter("condu_images", description="Images predicted.", tag_keys=("label_space",))
        self._forwards = Counter(
            "condu_expert_forwards", description="Forwards of experts, one per image.", tag_keys=("label_space",)
        )
        self._seconds = metrics.Histogram(
            "condu_request_seconds",
            description="Duration of successful predictions.",
            boundaries=REQUEST_SECONDS,
            tag_keys=("label_space",),
        )
        self._version = metrics.Gauge("condu_version", description="The version being served.")
        self._asked = Counter(
            "condu_expert_requests", description="Requests by whether the expert was in memory.", tag_keys=("outcome",)
        )
        self._loads = metrics.Histogram(
            "condu_expert_load_seconds", description="Time to rebuild an expert.", boundaries=LOAD_SECONDS
        )

    def requested(self, label_space: str, status: int) -> None:
        self._requests.inc(tags={"label_space": label_space, "status": str(status)})

    def predicted(self, label_space: str, seconds: float, num_images: int, expert_forwards: int) -> None:
        self._images.inc(num_images, tags={"label_space": label_space})
        if expert_forwards:  # Ray refuses to count 0
            self._forwards.inc(expert_forwards, tags={"label_space": label_space})
        self._seconds.observe(seconds, tags={"label_space": label_space})

    def serving(self, version: int) -> None:
        self._version.set(version)

    def expert_asked(self, *, hit: bool) -> None:
        self._asked.inc(tags={"outcome": "hit" if hit else "miss"})

    def expert_loaded(self, seconds: float) -> None:
        self._loads.observe(seconds)
