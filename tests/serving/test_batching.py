"""Continuous batching: what shares a forward, who has a turn, and whose mistake it is."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence

import numpy as np
import pytest
import torch

from serving.batching import Batcher, Pool, Slices

Story = Callable[[Batcher], Awaitable[None]]


def crops(*values: int) -> list[np.ndarray]:
    return [np.full((1, 1, 3), value, np.uint8) for value in values]


def doubled(images: Sequence[np.ndarray]) -> torch.Tensor:
    """Features whose right answer is known: twice each image's value."""
    return torch.tensor([[2.0 * float(image[0, 0, 0])] for image in images])


class Gate:
    """A forward that waits until it is opened, and notes the batches that it was given."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.begun = threading.Event()
        self.batches: list[tuple[str, list[int]]] = []

    def __call__(self, lane: str) -> Callable[[Sequence[np.ndarray]], torch.Tensor]:
        def forward(images: Sequence[np.ndarray]) -> torch.Tensor:
            self.batches.append((lane, [int(image[0, 0, 0]) for image in images]))
            self.begun.set()
            assert self.open.wait(20)
            return doubled(images)

        return forward


def run(story: Story, *, max_batch_size: int = 4) -> Batcher:
    batcher = Batcher(max_batch_size)

    async def whole() -> None:
        try:
            await asyncio.wait_for(story(batcher), 30)
        finally:
            batcher.close()

    asyncio.run(whole())
    return batcher


async def begun(gate: Gate) -> None:
    assert await asyncio.to_thread(gate.begun.wait, 20)


def test_a_lone_request_is_computed_at_once_and_every_image_gets_its_own_answer() -> None:
    async def story(batcher: Batcher) -> None:
        assert (await batcher.images("a", doubled, crops(7))).tolist() == [[14.0]]
        assert (await batcher.images("a", doubled, crops(*range(10)))).tolist() == [[2.0 * i] for i in range(10)]

    counts = run(story).counts
    assert (counts.images, counts.batches, counts.largest_batch) == (11, 4, 4)


def test_what_comes_during_a_forward_makes_up_the_next_one() -> None:
    gate = Gate()

    async def story(batcher: Batcher) -> None:
        asked = [asyncio.create_task(batcher.images("a", gate("a"), crops(1)))]
        await begun(gate)
        asked += [asyncio.create_task(batcher.images("a", gate("a"), crops(i))) for i in (2, 3, 4)]
        await asyncio.sleep(0)
        gate.open.set()
        assert [(await one).tolist() for one in asked] == [[[2.0]], [[4.0]], [[6.0]], [[8.0]]]

    run(story)
    assert gate.batches == [("a", [1]), ("a", [2, 3, 4])]


def test_lanes_take_turns_and_a_large_request_lets_others_of_its_lane_pass() -> None:
    gate = Gate()

    async def story(batcher: Batcher) -> None:
        asked = [asyncio.create_task(batcher.images("first", gate("first"), crops(0)))]
        await begun(gate)
        for lane, values in (("busy", range(1, 13)), ("busy", [20]), ("quiet", [30])):
            asked.append(asyncio.create_task(batcher.images(lane, gate(lane), crops(*values))))
        await asyncio.sleep(0)
        gate.open.set()
        await asyncio.gather(*asked)

    run(story)
    assert gate.batches[1:] == [
        ("busy", [1, 2, 3, 4]),
        ("quiet", [30]),
        ("busy", [20, 5, 6, 7]),
        ("busy", [8, 9, 10, 11]),
        ("busy", [12]),
    ]


def test_an_error_reaches_those_in_its_forward_and_nobody_else() -> None:
    def broken(_: Sequence[np.ndarray]) -> torch.Tensor:
        raise ValueError("no such kernel")

    async def story(batcher: Batcher) -> None:
        bad = asyncio.create_task(batcher.images("bad", broken, crops(1, 2)))
        good = asyncio.create_task(batcher.images("good", doubled, crops(3)))
        with pytest.raises(ValueError, match="no such kernel"):
            await bad
        assert (await good).tolist() == [[6.0]]

    run(story)


def test_a_request_that_failed_in_one_batch_is_not_computed_further() -> None:
    batches: list[int] = []

    def broken(images: Sequence[np.ndarray]) -> torch.Tensor:
        batches.append(len(images))
        raise MemoryError("no room for 4 images")

    async def story(batcher: Batcher) -> None:
        with pytest.raises(MemoryError, match="no room"):
            await batcher.images("a", broken, crops(*range(10)))
        assert (await batcher.images("a", doubled, crops(3))).tolist() == [[6.0]]

    run(story)
    assert batches == [4]


def test_what_nobody_waits_for_any_longer_is_not_computed() -> None:
    gate = Gate()

    async def story(batcher: Batcher) -> None:
        first = asyncio.create_task(batcher.images("a", gate("a"), crops(1)))
        await begun(gate)
        left, stayed = (asyncio.create_task(batcher.images("a", gate("a"), crops(i))) for i in (2, 3))
        await asyncio.sleep(0)
        left.cancel()
        await asyncio.sleep(0)
        gate.open.set()
        assert (await first).tolist() == [[2.0]]
        assert (await stayed).tolist() == [[6.0]]

    run(story)
    assert gate.batches == [("a", [1]), ("a", [3])]


def test_work_in_slices_lets_images_through_between_them() -> None:
    order: list[str] = []
    begun_slices, go_on = threading.Event(), threading.Event()

    def slices() -> Slices[str]:
        begun_slices.set()
        assert go_on.wait(20)
        for number in range(3):
            order.append(f"slice {number}")
            yield
        return "done"

    def forward(images: Sequence[np.ndarray]) -> torch.Tensor:
        order.append("images")
        return doubled(images)

    async def story(batcher: Batcher) -> None:
        long = asyncio.create_task(batcher.steps(slices()))
        assert await asyncio.to_thread(begun_slices.wait, 20)
        short = asyncio.create_task(batcher.images("a", forward, crops(1)))
        await asyncio.sleep(0)
        go_on.set()
        await short
        assert await long == "done"

    run(story)
    assert order == ["slice 0", "images", "slice 1", "slice 2"]


def test_an_error_in_a_slice_reaches_its_caller() -> None:
    def slices() -> Slices[None]:
        yield
        raise OSError("no room")

    async def story(batcher: Batcher) -> None:
        with pytest.raises(OSError, match="no room"):
            await batcher.steps(slices())
        assert (await batcher.images("a", doubled, crops(1))).tolist() == [[2.0]]

    run(story)


@pytest.mark.parametrize(
    ("joins", "batches"),
    [
        # four at a time: the turn is "a"'s, whose forward takes what there is of the pool; "other" is in none
        (True, [("pool", [1, 2, 3, 4]), ("other", [9]), ("c", [5])]),
        (False, [("a", [1, 2]), ("other", [9]), ("b", [3]), ("c", [4, 5])]),
    ],
    ids=["together", "apart"],
)
def test_lanes_of_a_pool_share_a_forward_where_it_finds_that_better(
    joins: bool, batches: list[tuple[str, list[int]]]
) -> None:
    gate, asked_whether = Gate(), []

    def answer(lane: object, counts: Sequence[int]) -> bool:
        asked_whether.append((lane, list(counts)))
        return joins

    async def story(batcher: Batcher) -> None:
        pool = Pool(gate("pool"), answer)
        asked = [asyncio.create_task(batcher.images("first", gate("first"), crops(0)))]
        await begun(gate)
        for lane, values, of in (("a", (1, 2), pool), ("other", (9,), None), ("b", (3,), pool), ("c", (4, 5), pool)):
            asked.append(asyncio.create_task(batcher.images(lane, gate(lane), crops(*values), pool=of)))
        await asyncio.sleep(0)
        gate.open.set()
        assert [(await one).tolist() for one in asked[1:]] == [[[2.0], [4.0]], [[18.0]], [[6.0]], [[8.0], [10.0]]]

    run(story)
    assert gate.batches[1:] == batches
    assert asked_whether[0] == ("a", [2, 1, 1])


def test_a_lane_whose_callers_all_left_takes_no_forward_and_no_place_in_a_pools() -> None:
    gate = Gate()

    async def story(batcher: Batcher) -> None:
        pool = Pool(gate("pool"), lambda lane, counts: True)
        first = asyncio.create_task(batcher.images("first", gate("first"), crops(0)))
        await begun(gate)
        left = [asyncio.create_task(batcher.images(lane, gate(lane), crops(7), pool=pool)) for lane in "ab"]
        kept = asyncio.create_task(batcher.images("c", gate("c"), crops(8), pool=pool))
        await asyncio.sleep(0)
        for one in left:
            one.cancel()
        await asyncio.sleep(0)
        gate.open.set()
        assert (await kept).tolist() == [[16.0]]
        await first

    run(story)
    assert gate.batches[1:] == [("c", [8])]
