"""Whose the rows of a batch are, and what their experts add.

Letters: B images or texts, L tokens, R rows and C columns of a matrix, K components.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch

from fusion.answers.live.sides import Factors, LiveSide


class Mix:
    """The experts of the batch that is being computed. One thread at a time."""

    def __init__(self) -> None:
        self.parts: tuple[tuple[int, int, LiveSide], ...] = ()
        """First row, behind the last, and whose they are."""
        self._experts: tuple[LiveSide, ...] = ()
        self._owner_B = torch.empty(0, dtype=torch.int64)

    def set(self, owners: Sequence[LiveSide], device: torch.device) -> None:
        """Whose each row of the next batch is. Rows of one expert stand together."""
        parts, first = [], 0
        for side, rows in groupby(owners):
            last = first + len(list(rows))
            parts.append((first, last, side))
            first = last
        self.parts = tuple(parts)
        self._experts = tuple(side for _, _, side in parts)
        counts = torch.tensor([last - first for first, last, _ in parts])
        self._owner_B = torch.arange(len(parts)).repeat_interleave(counts).to(device)

    def per_row(self, values: Sequence[torch.Tensor]) -> torch.Tensor:
        """A value per expert to one per row, [B, …]; [1, …] where there is one expert."""
        return values[0][None] if len(values) == 1 else torch.stack(list(values))[self._owner_B]

    def factors(self, name: str) -> Factors | None:
        """Those of every row, padded with zeros: [B, K, R] and [B, K, C]; without B where all are one expert's."""
        found = [expert.factors.get(name) for expert in self._experts]
        some = [one for one in found if one is not None]
        if not some:
            return None
        if len(found) == 1:
            return some[0]
        most = max(len(u) for u, _ in some)
        sides = []
        for side in (0, 1):
            stacked = torch.zeros(len(found), most, some[0][side].shape[1], device=some[0][side].device)
            for place, one in enumerate(found):
                if one is not None:
                    stacked[place, : len(one[side])] = one[side]
            sides.append(stacked[self._owner_B])
        return sides[0], sides[1]

    def delta(self, name: str) -> torch.Tensor | None:
        """That of every row, [B or 1, …]; None if it is 0 for all."""
        found = [expert.deltas.get(name) for expert in self._experts]
        some = [one for one in found if one is not None]
        if not some:
            return None
        zero = torch.zeros_like(some[0])
        return self.per_row([zero if one is None else one for one in found])
