"""Options of answering, whoever answers: a service, an evaluation, or one process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge

from fusion.options import Options

DEFAULT_CACHED_EXPERTS = 8
"""Rebuilt experts that stay in memory: more than the experts of one image, or they would push each other out."""

MAX_PIXELS = 89_478_485
"""Largest accepted image, width x height, in training, on the command line and over HTTP. Pillow's own threshold:
256 MiB of decoded RGB."""


@dataclass(frozen=True)
class PredictOptions(Options):
    """How an image is answered where a request does not say."""

    rule: Literal["mean", "matched"] = "mean"
    """How images of no named task are answered. `mean`: the paper's rule. `matched`: experts answer for the labels that
    they were taught and the images that look like theirs, the base for everything else."""
    top_k: Annotated[int, Ge(1)] = 4
    """Experts consulted for an image of no named task, by the rule `mean`."""
