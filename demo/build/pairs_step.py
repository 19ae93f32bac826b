"""Step 3 of the base: icons and emoji with captions, while the words of step 2 are kept in mind.

BatchNorm stays in eval mode throughout. The image tower moves at a third of the text tower's rate, and its stem, its
first two stages and all depthwise filters not at all: it comes with knowledge of photographs that no pair refreshes,
and a step costs half. fp32, channels_last: bf16 is slower here, for depthwise convolutions have no fast backward.
"""

import logging
import math
import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from demo.build.augment import Augment
from demo.build.captions import NUM_CAPTIONS, Subject
from demo.build.model import encode_image, encode_text, tokenize
from demo.build.text_step import Lesson

log = logging.getLogger(__name__)

SIZES = ((0.6, 80), (1.0, 96))
"""(until this share of the steps, picture side): the first part at 80 pixels costs a third less."""

WEIGHT = {"emoji": 3.0, "colour": 1.5, "mono": 1.0, "sign": 3.0}


@dataclass(frozen=True)
class Pairs:
    """N pictures [N, S, S, 4] uint8, their captions' tokens [N, 8, 16] int32, name ids, whether black ink
    only, whether mirroring would change its meaning, and drawing weights."""

    pixels: Tensor
    tokens: Tensor
    name_ids: Tensor
    is_mono: Tensor
    is_upright: Tensor
    weights: Tensor


def prepare(items: list[Subject], pixels: np.ndarray, texts: list[list[str]]) -> Pairs:
    flat = tokenize([caption for captions in texts for caption in captions]).int()
    ids: dict[str, int] = {}
    names = [ids.setdefault(s.name, len(ids)) for s in items]
    return Pairs(
        torch.from_numpy(pixels),
        flat.reshape(len(items), NUM_CAPTIONS, -1),
        torch.tensor(names),
        torch.tensor([s.kind in ("mono", "sign") for s in items]),
        torch.tensor([s.kind == "sign" or s.name.startswith(("digit ", "letter ")) for s in items]),
        torch.tensor([WEIGHT[s.kind] for s in items]),
    )


def contrastive(image: Tensor, text: Tensor, scale: Tensor, name_ids: Tensor) -> Tensor:
    """Symmetric cross-entropy; all pairs of one name are each other's right answers."""
    same = (name_ids[:, None] == name_ids[None]).float()
    targets = same / same.sum(1, keepdim=True)
    logits = scale * image @ text.T
    losses = [-(targets * F.log_softmax(side, dim=-1)).sum(1).mean() for side in (logits, logits.T)]
    return sum(losses) / 2


def freeze_filters(model: nn.Module) -> None:
    """Stem, stages 0 and 1 and every depthwise filter stay as ImageNet made them."""
    trunk = model.visual.trunk
    for module in (trunk.conv_stem, trunk.bn1, *trunk.blocks[:2]):
        module.requires_grad_(False)
    for module in trunk.modules():
        if isinstance(module, nn.Conv2d) and module.groups > 1:
            module.weight.requires_grad_(False)


def make_optimizer(model: nn.Module, lr: float, tower_rate: float) -> torch.optim.Optimizer:
    tower = [p for p in model.visual.trunk.parameters() if p.requires_grad]
    rest = [p for name, p in model.named_parameters() if not name.startswith("visual.trunk.")]
    groups = [{"params": rest, "lr": lr}, {"params": tower, "lr": lr * tower_rate}]
    return torch.optim.AdamW(groups, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.0, fused=True)


def train_pairs(
    model: nn.Module,
    pairs: Pairs,
    lesson: Lesson,
    *,
    num_steps: int,
    budget_s: float,
    batch_size: int = 192,
    num_replayed: int = 160,
    replay_weight: float = 3.0,
    lr: float = 4e-4,
    tower_rate: float = 0.3,
    scale: float = 20.0,
    seed: int = 3,
) -> int:
    """Train in place until `num_steps` steps or `budget_s` seconds are over, whichever is first; returns the
    steps.

    Cosine schedule over that progress after 50 warm-up steps, no weight decay.
    """
    freeze_filters(model)
    model = model.to(memory_format=torch.channels_last)
    with torch.no_grad():
        model.logit_scale.fill_(math.log(scale))
    augment, generator = Augment(seed), torch.Generator().manual_seed(seed)
    optimizer = make_optimizer(model, lr, tower_rate)
    rates = [group["lr"] for group in optimizer.param_groups]
    start, smooth = time.monotonic(), math.log(batch_size)
    step, done = 0, 0.0
    while done < 1:
        step += 1
        factor = min(step / 50, 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * factor
        rows = torch.multinomial(pairs.weights, batch_size, generator=generator)
        which = torch.randint(NUM_CAPTIONS, (batch_size,), generator=generator)
        size = next(side for until, side in SIZES if done < until)
        views = augment(pairs.pixels[rows], pairs.is_mono[rows], pairs.is_upright[rows], size=size)
        replay_tokens, replay_targets, replay_weights = lesson.draw(num_replayed, generator)
        tokens = torch.cat([pairs.tokens[rows, which].long(), replay_tokens])
        image = encode_image(model, views.contiguous(memory_format=torch.channels_last))
        text = encode_text(model, tokens)
        pair_loss = contrastive(image, text[:batch_size], model.logit_scale.exp(), pairs.name_ids[rows])
        distance = 1 - (text[batch_size:] * replay_targets).sum(-1)
        replay_loss = (replay_weights * distance).sum() / replay_weights.sum()
        optimizer.zero_grad(set_to_none=True)
        (pair_loss + replay_weight * replay_loss).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=math.log(100))
        smooth = 0.98 * smooth + 0.02 * pair_loss.item()
        if step % 20 == 0:
            log.info(
                "pairs step=%d loss=%.3f replay=%.3f scale=%.1f images_s=%.0f",
                step, smooth, replay_loss.item(), model.logit_scale.exp().item(),
                step * batch_size / (time.monotonic() - start),
            )  # fmt: skip
        done = max(step / num_steps, (time.monotonic() - start) / budget_s)
    return step
