"""Claim: telling which of a thousand tasks an image is from costs a small part of the base's own forward.

Times the router (rule `matched`) for a batch of 16 images against 1,000 tasks of 100 classes in 512 dimensions, beside
a ViT-B/16's forward of 16 images at 224 px, on one core in the same run. Random weights and evidence: only shapes
matter.
The last line is JSON; `ratio` is router / forward.

    python -m benchmarks.routing_scale         # half a minute, 2 GB of memory
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable

import open_clip
import torch
from torch.nn.functional import normalize

from fusion.answers.class_sums import ClassSums
from fusion.answers.evidence import Evidence
from fusion.answers.router import Router

TASKS, CLASSES, DIMENSIONS, IMAGES = 1000, 100, 512, 16
ROUNDS = 5


def main() -> None:
    torch.set_num_threads(1)
    random = torch.Generator().manual_seed(0)
    shared = 0.01 * torch.eye(DIMENSIONS)  # one tensor: a thousand scatters would be a gigabyte, and are not timed
    evidence = {
        f"task-{k}": Evidence(
            ClassSums(
                torch.full((CLASSES,), 20),
                normalize(torch.randn(CLASSES, DIMENSIONS, generator=random), dim=1),
                shared,
            ),
            torch.rand(100, generator=random).sort().values,
        )
        for k in range(TASKS)
    }
    start = time.perf_counter()
    router = Router(evidence)
    derived = time.perf_counter() - start
    features = normalize(torch.randn(IMAGES, DIMENSIONS, generator=random), dim=1)
    model = open_clip.create_model("ViT-B-16", pretrained=None).eval()
    pixels = torch.randn(IMAGES, 3, 224, 224, generator=random)
    with torch.inference_mode():
        routing = _median(lambda: router.log_likelihoods(features))
        forward = _median(lambda: model.encode_image(pixels))
    print(f"router for {TASKS} tasks of {CLASSES} classes derived in {derived:.1f} s")
    print(f"{IMAGES} images: router {1000 * routing:.0f} ms, ViT-B/16 {1000 * forward:.0f} ms")
    values = {"routing_s": routing, "forward_s": forward, "ratio": routing / forward, "derive_s": derived}
    print(json.dumps({name: round(value, 4) for name, value in values.items()}))


def _median(work: Callable[[], object]) -> float:
    work()
    seconds = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


if __name__ == "__main__":
    main()
