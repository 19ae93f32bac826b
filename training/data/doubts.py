"""What is worth a word before training, as far as it shows without looking at pixels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from training.data.blocks import WINDOW_BYTES
from training.data.images import ImageSet, Rows


def doubts(classes: Sequence[str], images: ImageSet, test: Rows) -> list[str]:
    """What is probably a mistake, as far as it shows without looking at pixels; `condu data check` looks closer."""
    found, train = [], images.samples
    if len(classes) == 1:
        found.append(f"there is only one class, {classes[0]!r}: every image is right whatever is learned")
    hashes, image = np.unique(train.hashes.view("V32").ravel(), return_inverse=True)
    pairs = np.unique(np.stack([image.ravel(), train.labels]), axis=1)
    if torn := int((np.bincount(pairs[0]) > 1).sum()) if len(hashes) else 0:
        found.append(f"{torn} training images are in two classes")
    if leaked := int(np.isin(test.hashes.view("V32").ravel(), hashes).sum()):
        found.append(f"{leaked} test images are also training images: accuracy will look too good")
    return found + _sorted_by_class(images)


def said_of_size(images: ImageSet) -> list[str]:
    """What is said of training images that are too many for memory."""
    blocks = images.blocks
    if not blocks.streamed:
        return []
    size, count = f"{blocks.bytes / 2**30:.1f} GiB", len(blocks.in_order)
    return [f"{size} to train, in {count} blocks that are read and shuffled a few at a time"]


def _sorted_by_class(images: ImageSet) -> list[str]:
    """A warning where blocks hold so few classes that a window of them is no sample of the data."""
    if not images.blocks.streamed:
        return []
    blocks = images.blocks.in_order
    num_blocks = max(1, round(len(blocks) * WINDOW_BYTES / images.blocks.bytes))
    seen = num_blocks * sum(len(np.unique(images.labels[block])) for block in blocks) / len(blocks)
    num_classes = len(np.unique(images.labels))
    if seen >= num_classes / 2:
        return []
    return [
        f"the rows are sorted by class: the {num_blocks} blocks that are shuffled together hold about {seen:.0f} of "
        f"{num_classes} classes: write the rows in random order, or take smaller row groups"
    ]
