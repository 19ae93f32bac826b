"""X: what a team writes without condu. One model, FastAPI and torch, one image at a time; started by `serve_load`."""

import io
import sys
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI, Request
from PIL import Image

from fusion.answers.clip import build_clip
from fusion.store import open_store
from fusion.store.node_cache import NodeCache
from fusion.versions.history import Versions

store_url, port, num_cpus = sys.argv[1:]
store = open_store(store_url)
newest = Versions(store).newest()
assert newest is not None, "the benchmark publishes before it starts this"
torch.set_num_threads(max(1, round(float(num_cpus))))
clip = build_clip(newest.base, NodeCache(store).tensors(newest.base.weights))
classes = [f"thing 0 {c}" for c in range(8)]
texts = clip.class_features(classes, ["a photo of a {}."])
app = FastAPI()


@app.post("/predict")
async def predict(request: Request) -> dict[str, Any]:
    image = Image.open(io.BytesIO(await request.body())).convert("RGB")
    features = clip.image_features(clip.preprocess(image)[None])
    probabilities = (100 * features @ texts.T).softmax(-1)[0]
    best = int(probabilities.argmax())
    return {"label": classes[best], "probability": float(probabilities[best])}


uvicorn.run(app, host="127.0.0.1", port=int(port), log_level="warning", access_log=False)
