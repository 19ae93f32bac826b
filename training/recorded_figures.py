"""Figures that a training finds out once: kept in an expert's record, and in a resumable state until there is one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, astuple, dataclass, fields
from typing import ClassVar, Self

import torch


@dataclass(frozen=True)
class RecordedFigures:
    """Base of the kinds. All fields are floats."""

    prefix: ClassVar[str]
    """What their names begin with among the metrics of an expert's record."""

    def metrics(self) -> dict[str, float]:
        """What an expert's record says of them."""
        return {self.prefix + name: value for name, value in asdict(self).items()}

    @classmethod
    def from_metrics(cls, metrics: Mapping[str, float]) -> Self | None:
        """From a record's metrics; None where it has none of this kind."""
        found = {field.name: metrics.get(cls.prefix + field.name) for field in fields(cls)}
        given = {name: value for name, value in found.items() if value is not None}
        return cls(**given) if len(given) == len(found) else None

    def tensor(self) -> torch.Tensor:
        """All figures, float64 [number of fields]: what a resumable state keeps."""
        return torch.tensor(astuple(self), dtype=torch.float64)

    @classmethod
    def from_tensor(cls, tensor: torch.Tensor) -> Self:
        """Read what `tensor` gave."""
        return cls(*tensor.tolist())
