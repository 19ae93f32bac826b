"""Build the demo's base: `demo/base/condu-tiny.{json,safetensors}`.

    python -m demo.build.base --cache DIR [--steps text pairs]

Three steps: an ImageNet-trained image tower (read, not trained here), a text tower taught to speak the tower's
language, and icons and emoji with captions. The state after each step is kept in the cache, so a step can be run
alone. Set MALLOC_MMAP_THRESHOLD_=1073741824 MALLOC_TRIM_THRESHOLD_=4294967296: glibc otherwise hands big
buffers back to the system after every operator, and the run takes several times as long.
"""

import argparse
import logging
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from demo.build import pairs_step, text_step
from demo.build.captions import captions, subjects
from demo.build.model import load_tower, new_model, save_base
from demo.build.pictures import render_all
from demo.build.sources import add_cache_argument, fetch_all
from demo.build.words import check_ridge, collect_phrases
from demo.build.zero_shot import num_correct, read_test, task_folders

log = logging.getLogger(__name__)

OUT = Path(__file__).resolve().parents[1] / "base/condu-tiny.safetensors"
STEPS = ("text", "pairs")
PAIRS_STEPS, PAIRS_BUDGET_S = 900, 1320.0
"""Step 3 ends at whichever comes first, with its learning rate run out."""
SHARE_OF_PAIRS = 0.85
"""How far the shipped base goes from step 2's weights to step 3's. Chosen on pictures that are in no
test."""


def save_state(tensors: dict[str, Tensor], path: Path) -> None:
    """Between steps, too, only safetensors are written: nothing here unpickles but the one checkpoint of step 1."""
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)


def load_lesson(cache: Path, class_targets: Tensor) -> text_step.Lesson:
    """Phrases with targets, tokenised; kept in the cache, for embedding 22,000 glosses takes minutes."""
    path = cache / "lesson.safetensors"
    if not path.exists():
        top1, top5 = check_ridge(cache, class_targets)
        log.info("ridge on 200 left-out classes: top-1 %.0f %%, top-5 %.0f %%", 100 * top1, 100 * top5)
        lesson = text_step.prepare(collect_phrases(cache, class_targets))
        save_state(vars(lesson), path)
    return text_step.Lesson(**load_file(path))


def load_pairs(cache: Path) -> pairs_step.Pairs:
    items = subjects(cache)
    return pairs_step.prepare(items, render_all(cache, items), captions(items))


@torch.no_grad()
def blend(model: nn.Module, before: dict[str, Tensor], share: float) -> None:
    """Walk back a part of step 3: weights between the two states keep more photographs for little else
    lost."""
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            tensor.lerp_(before[name], 1 - share)


def report(model: nn.Module, folders: list[Path]) -> None:
    """Log zero-shot accuracies. For the reader only: nothing is chosen by them while training."""
    for folder in folders:
        test = read_test(folder)
        log.info("zero-shot task=%s accuracy=%.1f", test.name, 100 * num_correct(model, test) / len(test.labels))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_cache_argument(parser)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=STEPS)
    parser.add_argument("--threads", type=int, default=1, help="more than one only on an otherwise idle machine")
    parser.add_argument("--pairs-steps", type=int, default=PAIRS_STEPS)
    parser.add_argument("--pairs-budget-s", type=float, default=PAIRS_BUDGET_S)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    torch.set_num_threads(args.threads)
    cache = args.cache.resolve()
    fetch_all(cache)
    model = new_model()
    class_targets = load_tower(model, cache)
    lesson = load_lesson(cache, class_targets)
    after_text = cache / "after-text.safetensors"
    if "text" in args.steps:
        start = time.monotonic()
        cosine = text_step.train_text(model, lesson)
        log.info("text step done: cosine=%.3f s=%.0f", cosine, time.monotonic() - start)
        save_state(model.state_dict(), after_text)
        save_base(model, args.out)
        report(model, task_folders())
    if "pairs" in args.steps:
        model.load_state_dict(load_file(after_text))
        pairs = load_pairs(cache)
        start = time.monotonic()
        steps = pairs_step.train_pairs(model, pairs, lesson, num_steps=args.pairs_steps, budget_s=args.pairs_budget_s)
        log.info("pairs step done: pictures=%d steps=%d s=%.0f", len(pairs.pixels), steps, time.monotonic() - start)
        save_state(model.state_dict(), cache / "after-pairs.safetensors")
        blend(model, load_file(after_text), SHARE_OF_PAIRS)
        save_base(model, args.out)
        report(model, task_folders())


if __name__ == "__main__":
    main()
