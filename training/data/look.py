"""Which training images are looked at as a whole, for prototypes and evidence: all, or of very many a part.

A look is a forward pass per image, before training and after it, and its features are in memory. So of more than
`MOST` images a part is taken: one that is large enough for means and covariances, and the same on every attempt.

Letters: N images.
"""

from __future__ import annotations

import numpy as np

from training.data.images import ImageSet

MOST = 1 << 17
"""Above this many images only about so many are looked at."""
_FEWEST = 5
"""Of each class at least so many, where it has them."""


def looked_at(images: ImageSet) -> np.ndarray:
    """Indices, ascending. Chosen by content; of a set that is read in blocks, whole blocks."""
    if len(images) <= MOST:
        return np.arange(len(images))
    share = images.samples.share(of=1)
    chosen = _in_blocks(images.blocks.of, share) if images.blocks.streamed else share < MOST / len(images)
    rank = np.arange(len(images)) - np.searchsorted(images.labels, images.labels)
    scarce = np.bincount(images.labels[chosen], minlength=int(images.labels.max()) + 1) < _FEWEST
    return np.flatnonzero(chosen | (scarce[images.labels] & (rank < _FEWEST)))


def _in_blocks(block_of: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Images of so many blocks that together have about `MOST`, in the order of the blocks' smallest shares."""
    smallest = np.full(int(block_of.max()) + 1, np.inf)
    np.minimum.at(smallest, block_of, share)
    order = np.argsort(smallest, kind="stable")
    enough = np.cumsum(np.bincount(block_of)[order]) - MOST
    taken = order[: int(np.searchsorted(enough, 0)) + 1]
    return np.isin(block_of, taken)
