"""How many experts are in use at once."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

import pytest

from serving.seats import Seats


def test_never_more_keys_than_seats_are_in_use_and_everyone_gets_a_turn() -> None:
    async def story() -> None:
        seats, in_use, most, served = Seats(2, patience_s=0.01), Counter[str](), 0, Counter[str]()

        async def use(key: str, seconds: float) -> None:
            nonlocal most
            async with seats.take(key):
                in_use[key] += 1
                most = max(most, len(+in_use))
                try:
                    await asyncio.sleep(seconds)
                    served[key] += 1
                finally:
                    in_use[key] -= 1

        choose = random.Random(0)
        calls = [use(choose.choice("abcde"), choose.random() / 100) for _ in range(200)]
        tasks = [asyncio.create_task(call) for call in calls]
        await asyncio.sleep(0.02)
        for task in tasks[::7]:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert most == 2
        assert sum(served.values()) >= 200 - len(tasks[::7])
        assert seats.taken == ()

    asyncio.run(asyncio.wait_for(story(), 30))


def test_users_of_one_key_share_its_seat() -> None:
    async def story() -> None:
        seats = Seats(1)
        async with seats.take("a"), seats.take("a"):
            assert seats.taken == ("a",)

    asyncio.run(asyncio.wait_for(story(), 5))


@pytest.mark.parametrize(("patience_s", "waits"), [(60.0, False), (0.0, True)])
def test_who_waits_lets_others_join_a_taken_seat_for_a_while_only(patience_s: float, waits: bool) -> None:
    async def story() -> None:
        seats, order = Seats(1, patience_s=patience_s), []

        async def use(key: str, name: str) -> None:
            async with seats.take(key):
                order.append(name)

        async with seats.take("a"):
            cold = asyncio.create_task(use("b", "cold"))
            await asyncio.sleep(0.01)
            warm = asyncio.create_task(use("a", "warm"))
            await asyncio.sleep(0.01)
        await asyncio.gather(cold, warm)
        assert order == (["cold", "warm"] if waits else ["warm", "cold"])

    asyncio.run(asyncio.wait_for(story(), 5))


def test_a_waiter_that_gives_up_does_not_hold_up_those_behind() -> None:
    async def story() -> None:
        seats = Seats(1, patience_s=0.0)

        async def use(key: str) -> str:
            async with seats.take(key):
                return key

        async with seats.take("a"):
            gives_up = asyncio.create_task(use("b"))
            behind = asyncio.create_task(use("a"))
            await asyncio.sleep(0.01)
            assert not behind.done()
            gives_up.cancel()
            await asyncio.sleep(0.01)
            assert behind.result() == "a"
        assert seats.taken == ()

    asyncio.run(asyncio.wait_for(story(), 5))
