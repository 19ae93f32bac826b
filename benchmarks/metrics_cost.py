"""Claim: what a service counts costs a prediction less than a hundredth of its time.

Makes the calls that a prediction makes (nothing named, one image, its expert and texts in memory), in a replica of Ray
Serve, whose tags are part of the cost: microseconds of processor time that a prediction's metrics took before there
were stages, that all take, and that one record takes. The last line is JSON.

    python -m benchmarks.metrics_cost     # a minute
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable

import ray
from ray import serve

from serving.metrics.serve import ServeMetrics
from serving.stages import Stage

CALLS, ROUNDS = 2000, 9
STAGES: dict[Stage, float] = {
    "decode": 0.001, "queue": 0.0, "base": 0.01, "route": 0.0005, "experts": 0.01, "answer": 0.0002
}  # fmt: skip


@serve.deployment
class Measured:
    """A replica that measures itself."""

    def microseconds(self) -> dict[str, tuple[float, float]]:
        """Median and half the spread of a call, of processor time, by what it records."""
        metrics = ServeMetrics()

        def before() -> None:
            metrics.requested("seen", 200)
            metrics.predicted("seen", 0.02, 1, 1)
            metrics.expert_asked(hit=True)

        def added() -> None:
            metrics.answered("seen", STAGES, [0.4])
            metrics.forward("base", 1, 0)
            metrics.forward("expert", 1, 1)
            metrics.texts_asked(10, 0)
            metrics.texts_asked(10, 0)

        def whole() -> None:
            before()
            added()

        kinds: dict[str, Callable[[], None]] = {
            "one record": lambda: metrics.requested("seen", 200),
            "a prediction, before there were stages": before,
            "a prediction, now": whole,
            "each further image (familiarity)": lambda: metrics.answered("seen", {}, [0.4]),
        }
        return {name: _timed(call) for name, call in kinds.items()}


def _timed(call: Callable[[], None]) -> tuple[float, float]:
    rounds = []
    for _ in range(ROUNDS):
        started = time.thread_time()
        for _ in range(CALLS):
            call()
        rounds.append((time.thread_time() - started) / CALLS * 1e6)
    return statistics.median(rounds), (max(rounds) - min(rounds)) / 2


def main() -> None:
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        handle = serve.run(Measured.bind(), name="metrics_cost", route_prefix=None)
        found: dict[str, tuple[float, float]] = handle.microseconds.remote().result(timeout_s=300)
    finally:
        serve.shutdown()
        ray.shutdown()
    for name, (median, spread) in found.items():
        print(f"{name:<42} {median:7.1f} us +- {spread:.1f}")
    print(json.dumps({"claim": "metrics_cost", "microseconds": {name: round(m, 1) for name, (m, _) in found.items()}}))


if __name__ == "__main__":
    main()
