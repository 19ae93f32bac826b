"""Text features of models, kept within a budget of bytes; new ones are encoded in slices between batches of images.

Kept by class, so that of a caller's labels those that a task was taught are there already; and by list of classes, so
that a list that is asked about again is one look-up. A thousand new labels cost their own request time, and others a
slice at most.

Letters: C classes, D dimensions of the embedding.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Executor

import torch

from fusion.answers.clip import TextEncoder
from fusion.answers.prompts import prompts
from serving.batching import Batcher, Slices
from serving.metrics import Metrics

_FIRST_SLICE = 8
_SLICE_S = 0.02
"""About how long a slice computes."""
_KEY_BYTES = 400
_Key = tuple[str, bool, tuple[str, ...], str | tuple[str, ...]]
"""A model, whether features are unit, templates, and a class, whose features are [D], or a list of classes that was
asked for, [C, D]."""


class TextFeatures:
    """Zero-shot weights by model, templates and class. For one event loop.

    Args:
        loaders: threads that get hold of a model whose texts are to be encoded.
        budget_bytes: of features that stay in memory; the least recently used go first.
    """

    def __init__(self, batcher: Batcher, loaders: Executor, budget_bytes: int, metrics: Metrics) -> None:
        self._batcher = batcher
        self._loaders = loaders
        self._budget_bytes = budget_bytes
        self._metrics = metrics
        self._kept: OrderedDict[_Key, torch.Tensor] = OrderedDict()
        self._encoding: dict[_Key, asyncio.Task[dict[_Key, torch.Tensor]]] = {}
        self.used_bytes = 0

    async def of(
        self,
        model: str,
        load: Callable[[], TextEncoder],
        classes: Sequence[str],
        templates: tuple[str, ...],
        *,
        unit: bool = True,
    ) -> torch.Tensor:
        """What the model's `class_features` gives, float32 [C, D]. Requests that want the same class encode it once.

        Args:
            model: its name: an expert's key.
            load: gives the model; may block.
            unit: off: the mean over templates of what the encoder gives, whatever its length.
        """
        whole: _Key = (model, unit, templates, tuple(classes))
        if (stacked := self._kept.get(whole)) is not None:
            self._kept.move_to_end(whole)
            self._metrics.texts_asked(len(classes), 0)
            return stacked
        wanted: list[_Key] = [(model, unit, templates, name) for name in classes]
        found = {one: self._kept[one] for one in wanted if one in self._kept}
        for one in found:
            self._kept.move_to_end(one)
        self._metrics.texts_asked(len(found), len(wanted) - len(found))
        new = [one for one in wanted if one not in found and one not in self._encoding]
        if new:
            encoding = asyncio.get_running_loop().create_task(self._encode(load, new))
            self._encoding |= dict.fromkeys(new, encoding)
        for encoding in {self._encoding[one]: None for one in wanted if one not in found}:
            # a request that is cancelled leaves the encoding to the others that wait for it
            found |= await asyncio.shield(encoding)
        stacked = torch.stack([found[one] for one in wanted])
        self._keep({whole: stacked})
        return stacked

    async def _encode(self, load: Callable[[], TextEncoder], new: Sequence[_Key]) -> dict[_Key, torch.Tensor]:
        try:
            encoder = await asyncio.get_running_loop().run_in_executor(self._loaders, load)
            _, unit, templates, _ = new[0]
            rows = await self._batcher.steps(_slices(encoder, [str(name) for *_, name in new], templates, unit=unit))
        finally:
            for one in new:
                del self._encoding[one]
        found = dict(zip(new, rows.unbind(), strict=True))
        self._keep(found)
        return found

    def _keep(self, found: dict[_Key, torch.Tensor]) -> None:
        self.used_bytes += sum(_size(value) for one, value in found.items() if one not in self._kept)
        self._kept |= found
        while self.used_bytes > self._budget_bytes:
            self.used_bytes -= _size(self._kept.popitem(last=False)[1])
        self._metrics.texts_kept(self.used_bytes)


def _slices(
    encoder: TextEncoder, classes: Sequence[str], templates: Sequence[str], *, unit: bool
) -> Slices[torch.Tensor]:
    """`class_features` with pauses; how many texts are encoded between two follows from how long the last ones took."""
    texts = prompts(classes, templates)
    features, done, size = [], 0, _FIRST_SLICE
    while True:
        started = time.perf_counter()
        features.append(encoder.text_features(texts[done : done + size], unit=unit))
        done += size
        if done >= len(texts):
            break
        seconds = time.perf_counter() - started
        size = max(1, min(2 * size, round(size * _SLICE_S / seconds)))
        yield
    means = torch.cat(features).reshape(len(classes), len(templates), -1).mean(1)
    return torch.nn.functional.normalize(means, dim=-1) if unit else means


def _size(value: torch.Tensor) -> int:
    return value.nbytes + _KEY_BYTES
