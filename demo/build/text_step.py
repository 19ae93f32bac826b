"""Step 2 of the base: teach the text tower where words belong, before any picture is seen."""

import logging
import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from demo.build.model import encode_text, tokenize
from demo.build.words import Phrases

log = logging.getLogger(__name__)

TEMPLATES = [
    "{}",
    "a {}",
    "the {}",
    "a photo of a {}",
    "a photo of the {}",
    "a picture of a {}",
    "an image of a {}",
    "a drawing of a {}",
    "an icon of a {}",
    "an emoji of a {}",
    "a {} icon",
    "clip art of a {}",
    "a close-up photo of a {}",
]


MAX_TOKENS = 11


@dataclass(frozen=True)
class Lesson:
    """Phrases ready for training: tokens [templates, N, 16] as int32, targets [N, D], weights [N]."""

    tokens: Tensor
    targets: Tensor
    weights: Tensor

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """(tokens, targets, weights) of `count` random phrases, each in a random template."""
        rows = torch.randint(len(self.targets), (count,), generator=generator)
        which = torch.randint(len(self.tokens), (count,), generator=generator)
        too_long = self.tokens[which, rows].argmax(-1) >= MAX_TOKENS
        which = torch.where(too_long, 0, which)  # one long text would make the whole batch wide
        return self.tokens[which, rows].long(), self.targets[rows], self.weights[rows]


def prepare(phrases: Phrases) -> Lesson:
    """Tokenise every phrase in every template, once; the few longest phrases are left out."""
    tokens = torch.stack([tokenize([t.format(text) for text in phrases.texts]).int() for t in TEMPLATES])
    short = tokens[0].argmax(-1) < MAX_TOKENS
    return Lesson(tokens[:, short], phrases.targets[short], phrases.weights[short])


def text_parameters(model: nn.Module) -> list[nn.Parameter]:
    return [p for name, p in model.named_parameters() if not name.startswith("visual.") and name != "logit_scale"]


def train_text(
    model: nn.Module,
    lesson: Lesson,
    *,
    num_steps: int = 2200,
    batch_size: int = 384,
    lr: float = 2e-3,
    warmup: int = 100,
    seed: int = 1,
) -> float:
    """Train the text tower; returns the last smoothed cosine to the targets.

    Loss: 4 (1 - cosine), which places a word, plus half a cross-entropy over the batch, which keeps
    neighbours apart. No weight decay: a token that no phrase uses must not move.
    """
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(text_parameters(model), lr=lr, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / warmup, 0.5 * (1 + torch.cos(torch.tensor(step / num_steps * torch.pi)).item())),
    )
    smooth, start = 0.0, time.monotonic()
    for step in range(num_steps):
        tokens, targets, weights = lesson.draw(batch_size, generator)
        features = encode_text(model, tokens)
        cosine = (features * targets).sum(-1)
        same = (targets @ targets.T > 0.999).float()  # synonyms are right answers too
        labels = same / same.sum(1, keepdim=True)
        entropy = -(labels * F.log_softmax(20 * features @ targets.T, dim=-1)).sum(1)
        loss = (weights * (4 * (1 - cosine) + 0.5 * entropy)).sum() / weights.sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        mean_cosine = (weights * cosine).sum().item() / weights.sum().item()
        smooth = mean_cosine if step == 0 else 0.98 * smooth + 0.02 * mean_cosine
        if step % 50 == 49:
            log.info(
                "text step=%d cosine=%.3f loss=%.3f s=%.0f",
                step + 1,
                smooth,
                loss.item(),
                time.monotonic() - start,
            )
    return smooth
