"""Zero-shot accuracy of a base on the demo's tasks, with 95 % Wilson intervals.

    python -m demo.build.zero_shot [--base demo/base/condu-tiny.safetensors] [TASK_FOLDER ...]

A class scores the cosine to the mean of its text features over the task's templates. About 20 s on two cores.
"""

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import open_clip
import pyarrow.parquet as pq
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from demo.build.model import PREPROCESS_CFG, encode_image, encode_text, load_base, tokenize

DEMO = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class TestSet:
    """A task's test pictures, preprocessed, with what is needed to ask about them."""

    name: str
    classes: list[str]
    templates: list[str]
    pixels: Tensor
    labels: Tensor


def read_test(folder: Path) -> TestSet:
    """Load `test.parquet` and `task.json` of one task, through open_clip's own preprocessing."""
    spec = json.loads((folder / "task.json").read_text())
    table = pq.read_table(folder / "test.parquet")
    transform = image_transform_v2(PreprocessCfg(**PREPROCESS_CFG), is_train=False)
    pixels = torch.stack([transform(Image.open(BytesIO(data)).convert("RGB")) for data in table["image"].to_pylist()])
    return TestSet(spec["name"], spec["classes"], spec["templates"], pixels, torch.tensor(table["label"].to_pylist()))


@torch.no_grad()
def class_features(model: nn.Module, classes: Sequence[str], templates: Sequence[str]) -> Tensor:
    """[classes, D] unit rows: mean over the templates."""
    texts = [template.format(name) for name in classes for template in templates]
    features = encode_text(model, tokenize(texts)).reshape(len(classes), len(templates), -1)
    return F.normalize(features.mean(1), dim=-1)


@torch.no_grad()
def num_correct(model: nn.Module, test: TestSet) -> int:
    features = torch.cat([encode_image(model, chunk) for chunk in test.pixels.split(128)])
    guesses = (features @ class_features(model, test.classes, test.templates).T).argmax(1)
    return int((guesses == test.labels).sum())


def wilson(correct: int, total: int, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of a proportion; holds for small counts and near 0 and 1."""
    share, spread = correct / total, z * z / total
    centre = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / total + spread / (4 * total))
    return centre - half, centre + half


def task_folders() -> list[Path]:
    return [path.parent for place in ("tasks", "unseen") for path in sorted((DEMO / place).glob("*/test.parquet"))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, default=DEMO / "base/condu-tiny.safetensors")
    parser.add_argument("folders", type=Path, nargs="*")
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = load_base(args.base)
    print(f"open_clip {open_clip.__version__}, torch {torch.__version__}")
    print("| task | classes | images | chance % | zero-shot % | 95 % interval |\n|---|---|---|---|---|---|")
    results = {}
    for folder in args.folders or task_folders():
        test = read_test(folder)
        correct, total = num_correct(model, test), len(test.labels)
        low, high = wilson(correct, total)
        results[test.name] = correct / total
        chance = 100 / len(test.classes)
        print(
            f"| {test.name} | {len(test.classes)} | {total} | {chance:.1f} "
            f"| {100 * correct / total:.1f} | {100 * low:.1f}-{100 * high:.1f} |",
            flush=True,
        )
    print(json.dumps({"claim": "zero_shot", **{name: round(value, 4) for name, value in results.items()}}))


if __name__ == "__main__":
    main()
