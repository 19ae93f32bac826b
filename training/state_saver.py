"""Saving where an unfinished training stands: when it pays, and beside the steps.

A save costs the step a copy of the state: with method `full` 12 bytes a parameter, in main memory until it is written.
Serialising, hashing and making it durable is done by one thread. There is one save at a time, so there is one copy.

When it pays: a state spares the steps since the last one, T seconds, to a process that dies in the rest of the task, R
seconds. With deaths M seconds apart on average that is worth T R / M. An interval that suits M has a save cost
T^2 / 2 M (Young 1974, "A first order approximation to the optimum checkpoint interval"). So it pays while R > T / 2.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from training.recipe import Recipe

logger = logging.getLogger(__name__)

State = Mapping[str, torch.Tensor]


class StateSaver:
    """Saves states of one training by the recipe's `save_every_seconds` or `save_every_steps`.

    Use it as a context manager: when the block ends, what is being written is written, or its error is raised.

    Args:
        recipe: when to save, and how many steps there are.
        write: makes a state durable, given the steps done and tensors in main memory; None: nothing is saved.
        clock: seconds, ascending.
    """

    def __init__(
        self,
        recipe: Recipe,
        write: Callable[[int, State], None] | None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._recipe = recipe
        self._write = write
        self._clock = clock
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="state")
        self._writing: Future[None] | None = None
        self._first: tuple[int, float] | None = None
        self._last_saved = clock()

    def __enter__(self) -> StateSaver:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._pool.shutdown()
        if self._writing is None:
            return
        error = self._writing.exception()
        if error is not None and kind is None:
            raise error
        if error is not None:
            logger.warning("a state was not saved: %s", error)

    def due(self, done: int) -> bool:
        """Whether to save the state after `done` steps. Asked after every step. Raises the error of an earlier save."""
        if self._writing is not None and self._writing.done():
            self._writing.result()
            self._writing = None
        recipe = self._recipe
        if self._write is None or done >= recipe.steps:
            return False
        if recipe.save_every_steps is not None:
            return done % recipe.save_every_steps == 0
        now = self._clock()
        if self._first is None:
            self._first = done, now
            return False
        first, begun = self._first
        rest = (now - begun) / (done - first) * (recipe.steps - done)
        interval = recipe.save_every_seconds
        return self._writing is None and now - self._last_saved >= interval and rest > interval / 2

    def begin(self, done: int, state: State) -> None:
        """Copy a state, and let it be written. Waits for an earlier one, and raises its error."""
        assert self._write is not None, "nothing is due without a writer"
        if self._writing is not None:
            self._writing.result()
        copies = {name: tensor.detach().to("cpu", copy=True) for name, tensor in state.items()}
        self._writing = self._pool.submit(self._save, self._write, done, copies)

    def _save(self, write: Callable[[int, State], None], done: int, state: State) -> None:
        write(done, state)
        self._last_saved = self._clock()  # from the end on, so that a slow store is not busy with states alone
