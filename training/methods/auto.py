"""Full fine-tuning where it pays: where held-out images show no need of an expert, training ends, as with `head`."""

from __future__ import annotations

from training.methods.full import Full


class Auto(Full):
    """Trains like `full`, and may end without an expert."""

    may_drop = True
