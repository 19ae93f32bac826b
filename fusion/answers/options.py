"""Options of answering, whoever answers: a service, an evaluation, or one process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Lt

from fusion.options import Options

DEFAULT_EXPERT_MEMORY = 4 << 30
"""Bytes of rebuilt experts that stay in memory: more than one image's experts, or they would push each other out."""

MAX_PIXELS = 89_478_485
"""Largest accepted image, width x height, in training, on the command line and over HTTP. Pillow's own threshold:
256 MiB of decoded RGB."""


@dataclass(frozen=True)
class PredictOptions(Options):
    """How an image is answered where a request does not say."""

    rule: Literal["matched", "mean"] = "matched"
    """How base and experts are combined. `matched`: experts answer for the labels that they were taught and the images
    that look like theirs, the base for everything else. `mean`: the paper's rule."""
    top_k: Annotated[int, Ge(1)] = 4
    """Experts consulted for an image of no named task, by the rule `mean`."""
    abstain: Annotated[float, Gt(0), Lt(1)] | None = None
    """Answer "unknown" where an image of no named task and no given labels is more unusual than this share of the
    learned tasks' own images, such as 0.05; null: never. By the rule `matched`."""
