"""What tests of training share."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from fusion.answers.clip import Clip, build_clip
from fusion.store import Store
from fusion.store.node_cache import NodeCache
from tests.tiny import tiny_base


@pytest.fixture
def one_thread() -> None:
    """Of torch, in this process: sums are then always in the same order."""
    torch.set_num_threads(1)


@pytest.fixture
def new_clip(local_store: Store) -> Callable[[], Clip]:
    """Makes models of the tiny base, one apart from the other."""
    base = tiny_base(local_store)
    cache = NodeCache(local_store)
    return lambda: build_clip(base, cache.tensors(base.weights))
