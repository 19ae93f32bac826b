"""Text features: the model's own, encoded once, in slices, within a budget."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from fusion.answers.clip import Clip, build_clip
from fusion.store import open_store
from fusion.store.node_cache import NodeCache
from serving.batching import Batcher
from serving.metrics import NoMetrics
from serving.texts import TextFeatures
from tests.tiny import tiny_base

TEMPLATES = ("a {} picture.", "{}.")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Clip:
    store = open_store(str(tmp_path_factory.mktemp("store")))
    base = tiny_base(store)
    return build_clip(base, NodeCache(store).tensors(base.weights))


class Counted:
    """A model that notes how many texts it encoded at a time."""

    def __init__(self, clip: Clip) -> None:
        self.clip = clip
        self.encoded: list[int] = []

    def load(self) -> Clip:
        return self  # type: ignore[return-value]

    def text_features(self, texts: Sequence[str], *, unit: bool = True) -> torch.Tensor:
        self.encoded.append(len(texts))
        return self.clip.text_features(texts)


def texts_of(batcher: Batcher, budget_bytes: int = 1 << 20) -> TextFeatures:
    return TextFeatures(batcher, ThreadPoolExecutor(1), budget_bytes, NoMetrics())


def run(story: Callable[[Batcher], Awaitable[None]]) -> None:
    async def whole() -> None:
        batcher = Batcher(4)
        try:
            await asyncio.wait_for(story(batcher), 60)
        finally:
            batcher.close()

    asyncio.run(whole())


def test_they_are_the_models_own_however_they_are_sliced(clip: Clip) -> None:
    names = [f"thing {i}" for i in range(40)]

    async def story(batcher: Batcher) -> None:
        counted = Counted(clip)
        found = await texts_of(batcher).of("m", counted.load, names, TEMPLATES)
        torch.testing.assert_close(found, clip.class_features(names, TEMPLATES), rtol=0, atol=1e-6)
        assert len(counted.encoded) > 1
        assert sum(counted.encoded) == 80

    run(story)


def test_a_class_is_encoded_once_for_all_who_want_it(clip: Clip) -> None:
    async def story(batcher: Batcher) -> None:
        counted = Counted(clip)
        texts = texts_of(batcher)

        async def ask(*names: str) -> torch.Tensor:
            return await texts.of("m", counted.load, names, TEMPLATES)

        both = await asyncio.gather(ask("a", "b"), ask("b", "c"), ask("a", "b"))
        assert sum(counted.encoded) == 2 * 3
        torch.testing.assert_close(both[0][1], both[1][0])
        torch.testing.assert_close(await ask("c", "a"), torch.stack([both[1][1], both[0][0]]))
        assert sum(counted.encoded) == 2 * 3
        await texts.of("another", counted.load, ["a"], TEMPLATES)
        assert sum(counted.encoded) == 2 * 4

    run(story)


def test_beyond_the_budget_the_oldest_go_and_answers_stay_right(clip: Clip) -> None:
    async def story(batcher: Batcher) -> None:
        texts = texts_of(batcher, 2000)
        for turn in range(3):
            for name in ("a", "b", "c", "d", "e"):
                found = await texts.of("m", lambda: clip, [name], TEMPLATES)
                torch.testing.assert_close(found, clip.class_features([name], TEMPLATES), msg=f"{name} in turn {turn}")
        assert texts.used_bytes <= 2000

    run(story)


def test_a_caller_who_leaves_does_not_take_the_encoding_from_the_others(clip: Clip) -> None:
    async def story(batcher: Batcher) -> None:
        texts = texts_of(batcher)
        names = [f"thing {i}" for i in range(30)]
        leaves, stays = (asyncio.create_task(texts.of("m", lambda: clip, names, TEMPLATES)) for _ in range(2))
        await asyncio.sleep(0)
        leaves.cancel()
        assert (await stays).shape[0] == 30

    run(story)


def test_an_error_reaches_those_who_wait_and_the_next_one_tries_again(clip: Clip) -> None:
    class Broken(Counted):
        def text_features(self, texts: Sequence[str], *, unit: bool = True) -> torch.Tensor:
            if not self.encoded:
                self.encoded.append(0)
                raise RuntimeError("out of memory")
            return super().text_features(texts)

    async def story(batcher: Batcher) -> None:
        texts, broken = texts_of(batcher), Broken(clip)
        with pytest.raises(RuntimeError, match="out of memory"):
            await texts.of("m", broken.load, ["a"], TEMPLATES)
        assert (await texts.of("m", broken.load, ["a"], TEMPLATES)).shape[0] == 1

    run(story)
