"""The probe: before fine-tuning, the text encoder learns to name what the frozen image encoder already tells apart.

The discriminant of the base's image features separates a task's classes well, even where the classes' names mean
nothing to the base. It can be written as one unit vector per class, in closed form; a few steps of the text encoder
alone, which see no image, bring the classes' prompts there. So fine-tuning starts where the discriminant stands.

Letters: N images, C classes, D dimensions of the embedding, L tokens of a text, P templates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax, normalize

from fusion.answers.class_sums import sum_classes, whitener
from fusion.answers.clip import LOGIT_SCALE
from fusion.answers.prompts import prompts
from training.recipe import Recipe

_WARMUP_STEPS = 5
_MOST_IMAGES = 2048
_SPREADS = tuple(10 ** (-k / 8) for k in range(64))
"""What is tried for the length of the classes' directions beside the mean direction's 1."""


def class_directions(features: torch.Tensor, labels: torch.Tensor, num_classes: int) -> torch.Tensor:
    """One unit vector per class that separates a task's images as their discriminant does, float32 [C, D].

        t_c = normalize(m + a W^-1 (mu_c - mu)),   the second term without its part along m

    m is the direction of the mean feature, which all images share, so it adds the same to every class; mu is the mean
    of the class means, and W their shrunk within-class covariance. Bringing t_c to unit length lowers the score of a
    class with a long direction, as the discriminant's own offset does. a is the one of a grid that gives the images the
    least cross-entropy at CLIP's logit scale.

    Args:
        features: unit image features, float32 [N, D].
        labels: int64 [N].
    """
    values = features.double()
    sums = sum_classes(features, labels, num_classes)
    white = whitener(sums.covariance())
    means = sums.means.double()
    centred = torch.where((sums.counts > 0)[:, None], means - means[sums.counts > 0].mean(0), 0.0)
    directions = centred @ white @ white.T
    mean = normalize(values.mean(0), dim=0)
    directions = directions - (directions @ mean)[:, None] * mean

    def vectors(spread: float) -> torch.Tensor:
        return normalize(mean + spread * directions, dim=1)

    losses = [float(cross_entropy(LOGIT_SCALE * values @ vectors(spread).T, labels)) for spread in _SPREADS]
    return vectors(_SPREADS[losses.index(min(losses))]).float()


def fit_texts(
    model: nn.Module,
    parameters: Sequence[nn.Parameter],
    tokens: torch.Tensor,
    directions: torch.Tensor,
    features: torch.Tensor,
    recipe: Recipe,
) -> float:
    """Move the text encoder until prompts say of images what the directions say, in place.

    The loss is 1 - cosine to the class's direction, plus the divergence KL(directions || prompts) of what both say of
    the images, with a weight that grows from 0 to 1. The cosine brings prompts near, whatever they say at first. But
    directions share most of their length, so with many classes a cosine of 0.95 still tells few of them apart; the
    divergence counts only what does.

    Args:
        parameters: the ones to move, of the text encoder. Weight decay is off, so unused tokens keep their values.
        tokens: of every template, int64 [P, C, L]. A step sees one template, in turn.
        directions: unit, float32 [C, D].
        features: unit image features, float32 [N, D]. Of more than 2048, these many are used.
        recipe: `probe_steps` and `probe_lr`.
    Returns: mean cosine of the last step.
    """
    optimizer = torch.optim.Adam(parameters, lr=recipe.probe_lr, fused=True)
    images = features[torch.linspace(0, len(features) - 1, min(len(features), _MOST_IMAGES)).round().long()]
    wanted = log_softmax(LOGIT_SCALE * images @ directions.T, dim=1)
    cosine = math.nan
    with torch.enable_grad():
        for step in range(recipe.probe_steps):
            for group in optimizer.param_groups:
                group["lr"] = _rate(recipe, step)
            optimizer.zero_grad(set_to_none=True)
            found = model.encode_text(tokens[step % len(tokens)], normalize=True)  # type: ignore[operator]
            agreement = (found * directions).sum(1).mean()
            said = log_softmax(LOGIT_SCALE * images @ found.T, dim=1)
            apart = kl_div(said, wanted, log_target=True, reduction="batchmean")
            (1 - agreement + (step / recipe.probe_steps) ** 2 * apart).backward()
            optimizer.step()
            cosine = float(agreement.detach())
    for parameter in parameters:
        parameter.grad = None
    return cosine


def prompt_tokens(tokenizer: nn.Module, classes: Sequence[str], templates: Sequence[str]) -> torch.Tensor:
    """Tokens of every template, int64 [P, C, L]."""
    return torch.stack([tokenizer(prompts(classes, [template])) for template in templates])


def _rate(recipe: Recipe, step: int) -> float:
    """Linear warm-up, then cosine to 0."""
    warm = min(1.0, (step + 1) / _WARMUP_STEPS)
    return recipe.probe_lr * warm * 0.5 * (1 + math.cos(math.pi * step / recipe.probe_steps))
