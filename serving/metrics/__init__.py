"""What a service counts. Labels come from small closed sets, never from task names or a request's text.

`serving.metrics.serve` exports it for Prometheus. There every value costs microseconds, so forwards and texts are told
by the batch, not by the image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, Protocol

from serving.stages import Stage

Model = Literal["base", "expert"]
"""Whose forward it is."""

Outcome = Literal["written", "no_room", "failed"]
"""What became of a row of the request log."""


class Metrics(Protocol):
    """What a replica reports. Its methods do nothing by themselves, and are called from several threads."""

    def requested(self, label_space: str, status: int) -> None:
        """A prediction ended, well or not."""

    def predicted(self, label_space: str, seconds: float, num_images: int, expert_forwards: int) -> None:
        """A prediction was answered."""

    def answered(self, label_space: str, stages: Mapping[Stage, float], familiarity: Sequence[float]) -> None:
        """How many seconds an answer took by stage, and how familiar its images were, where a rule could tell."""

    def serving(self, version: int) -> None:
        """The version that is served from now on."""

    def expert_asked(self, *, hit: bool) -> None:
        """An expert was needed. `hit`: it was in memory."""

    def expert_loaded(self, seconds: float) -> None:
        """An expert was made ready."""

    def trigger_read(self, seconds: float, num_bytes: int) -> None:
        """A trigger was brought to this node, or found there, and verified."""

    def forward(self, model: Model, num_images: int, num_tasks: int) -> None:
        """A batch went through a model. `num_tasks`: of how many tasks' experts; 0 for the base."""

    def texts_asked(self, num_kept: int, num_new: int) -> None:
        """Text features of classes were needed: of so many they were in memory, of the others not."""

    def texts_kept(self, num_bytes: int) -> None:
        """Bytes of text features in memory."""

    def logged(self, outcome: Outcome, num_rows: int) -> None:
        """Rows of the request log were written, or lost."""


class NoMetrics(Metrics):
    """For a service outside a cluster."""
