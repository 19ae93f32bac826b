"""Makes a base whose image encoder is a vision transformer, for measuring triggers on one.

No published ViT is at hand offline. This one learns to give the image features of another base (the demo's), whose text
encoder it takes over, so it understands what that base does, somewhat worse. It sees unlabelled images of folders of
data sets. The last line is JSON: cosine to the other base's features, and accuracy
without training on the tasks of a configuration.

    python -m benchmarks.vit_base configs/demo.yaml --data FOLDER --out /tmp/vit     # 15 minutes on 2 cores
    python -m benchmarks.held_out_fifth /tmp/vit/condu.yaml --folder /tmp/vit-full
    python -m benchmarks.held_out_fifth /tmp/vit/condu.yaml --folder /tmp/vit-lora \
        --train '{"method": "lora", "lora_targets": "all", "lr": 0.002}'
    python -m benchmarks.trigger_fidelity /tmp/vit-full/condu.yaml
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn.functional import cosine_similarity

from cluster.config import load_config
from fusion.answers.clip import Clip, build_clip
from fusion.answers.predictor import ExpertModel
from fusion.store.blobs import BlobRef
from fusion.versions.bases import Base
from training.data.task_data import Reading, TaskData, load_task_data
from training.evaluate import load_pixels, right_of

_VISION = {"image_size": 96, "patch_size": 32, "layers": 12, "width": 384, "head_width": 64}
"""A ViT-S/32 at 96 pixels: 22 million parameters."""
_BATCH, _LR, _WARMUP = 64, 1e-3, 50
_HELD_OUT = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, help="its base is the teacher, its tasks are looked at")
    parser.add_argument("--data", type=Path, help="further images: a folder of data sets")
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    config = load_config(options.config)
    spec = json.loads(Path(config.base.architecture).read_text())
    weights = load_file(config.base.weights)
    teacher = _clip(spec, weights)
    tasks = [load_task_data(task.name, task.data, Reading(verify=False)) for task in config.tasks]
    folders = sorted(path for path in options.data.iterdir() if path.is_dir()) if options.data else []
    others = [load_task_data(path.name, str(path), Reading(verify=False)) for path in folders]
    images = [data.train.image(i).resize((96, 96)) for data in (*tasks, *others) for i in range(len(data.train))]

    own = {**spec, "model_cfg": {**spec["model_cfg"], "vision_cfg": _VISION}}
    torch.manual_seed(0)
    student = _clip(own, None)
    texts = {name: tensor for name, tensor in weights.items() if not name.startswith("visual.")}
    student.model.load_state_dict(texts, strict=False)
    figures = _distil(teacher, student, images, options.steps)
    figures["zero_shot"] = {data.name: [_zero_shot(clip, data) for clip in (teacher, student)] for data in tasks}
    options.out.mkdir(parents=True, exist_ok=True)
    save_file({n: t.contiguous() for n, t in student.model.state_dict().items()}, options.out / "vit.safetensors")
    (options.out / "vit.json").write_text(json.dumps(own))
    (options.out / "condu.yaml").write_text(_run_config(options, config))
    print(json.dumps(figures))


def _clip(spec: dict[str, Any], weights: dict[str, torch.Tensor] | None) -> Clip:
    base = Base(BlobRef("", "0" * 64, 0), "vit", spec["model_cfg"], spec["preprocess_cfg"])
    clip = build_clip(base, None)
    if weights is not None:
        clip.model.load_state_dict(weights)
    return clip


def _distil(teacher: Clip, student: Clip, images: Sequence[Image.Image], steps: int) -> dict[str, Any]:
    """Train the student's image encoder, half of the time on mirrored images; returns how near it came."""
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(images), generator=generator)
    pixels = torch.cat([student.pixels([images[i] for i in part.tolist()]) for part in order.split(256)])
    wanted = {flip: teacher.image_features(_flipped(pixels, flip)) for flip in (False, True)}
    shown, held_out = pixels[_HELD_OUT:], pixels[:_HELD_OUT]
    encoder = student.model.get_submodule("visual").train().requires_grad_(True)
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=_LR, weight_decay=0.05)
    with torch.enable_grad():
        for step in range(1, steps + 1):
            rows = torch.randint(len(shown), (_BATCH,), generator=generator)
            flip = bool(torch.rand((), generator=generator) < 0.5)
            rate = min(step / _WARMUP, 1) * 0.5 * (1 + math.cos(math.pi * step / steps))
            for group in optimizer.param_groups:
                group["lr"] = _LR * rate
            found = encoder(_flipped(shown[rows], flip))
            loss = 1 - cosine_similarity(found, wanted[flip][_HELD_OUT:][rows]).mean()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(encoder.parameters(), 1.0)
            optimizer.step()
            if step % 100 == 0:
                print(f"step {step} of {steps}, cosine {1 - float(loss):.3f}", flush=True)
    encoder.eval()
    near = cosine_similarity(student.image_features(held_out), wanted[False][:_HELD_OUT]).mean()
    return {"steps": steps, "images": len(shown), "cosine_held_out": round(float(near), 3)}


def _flipped(pixels: torch.Tensor, flip: bool) -> torch.Tensor:
    return pixels.flip(-1) if flip else pixels


def _zero_shot(clip: Clip, data: TaskData) -> float:
    right = right_of(ExpertModel(clip), clip.image_features(load_pixels(clip, data)), data)
    return round(100 * float(right.mean()), 1)


def _run_config(options: argparse.Namespace, config: Any) -> str:
    """The configuration with this base. Paths are absolute."""
    values: dict[str, Any] = yaml.safe_load(options.config.read_text())
    out = options.out.resolve()
    values["base"] = {"architecture": str(out / "vit.json"), "weights": str(out / "vit.safetensors")}
    values["store"] = str(out / "store")
    values["tasks"] = [{**entry, "data": task.data} for entry, task in zip(values["tasks"], config.tasks, strict=True)]
    values.pop("unseen", None)
    values.pop("demo", None)
    return yaml.safe_dump(values, sort_keys=False)


if __name__ == "__main__":
    main()
