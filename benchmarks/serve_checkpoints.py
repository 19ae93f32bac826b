"""What Ray Serve offers without condu: a deployment per checkpoint, each a whole model; started by `serve_load`."""

from __future__ import annotations

import io
from typing import Any

import torch
from PIL import Image
from ray import serve
from starlette.requests import Request

from fusion.answers.clip import build_clip
from fusion.decouple import decoupled_tensors
from fusion.store import open_store
from fusion.store.node_cache import NodeCache
from fusion.versions.history import Versions


class Checkpoint:
    """One task's expert, answering for images of that task. Batches by Serve's own means."""

    def __init__(self, store_url: str, task: str, num_cpus: float) -> None:
        torch.set_num_threads(max(1, round(num_cpus)))
        cache = NodeCache(open_store(store_url))
        newest = Versions(cache.store).newest()
        assert newest is not None, "the benchmark publishes before it starts this"
        base = build_clip(newest.base, cache.tensors(newest.base.weights))
        self._clip = base.copy_with(decoupled_tensors(cache, newest, task))  # what a checkpoint's own file would hold
        self._classes = [f"thing 0 {c}" for c in range(8)]
        self._texts = self._clip.class_features(self._classes, ["a photo of a {}."])

    async def __call__(self, request: Request) -> dict[str, Any]:
        image = Image.open(io.BytesIO(await request.body())).convert("RGB")
        answer: dict[str, Any] = await self.batch(self._clip.preprocess(image))
        return answer

    @serve.batch(max_batch_size=16, batch_wait_timeout_s=0.0)
    async def batch(self, pixels: list[torch.Tensor]) -> list[dict[str, Any]]:
        features = self._clip.image_features(torch.stack(pixels))
        probabilities = (100 * features @ self._texts.T).softmax(-1)
        best = probabilities.argmax(1).tolist()
        return [
            {"label": self._classes[k], "probability": float(row[k])}
            for k, row in zip(best, probabilities, strict=True)
        ]


def start(store_url: str, tasks: list[str], num_cpus: float) -> None:
    """Deploy every task's checkpoint at `/TASK`, on the Serve that runs."""
    deployment: Any = serve.deployment(Checkpoint, ray_actor_options={"num_cpus": 0})  # type: ignore[call-overload]
    serve.run_many(
        [serve.RunTarget(deployment.bind(store_url, one, num_cpus), name=one, route_prefix=f"/{one}") for one in tasks]
    )
