"""Back-off: the delays that retries wait for."""

from __future__ import annotations

from itertools import islice

from fusion.backoff import delays_s


def test_delays_double_up_to_the_longest() -> None:
    assert list(islice(delays_s(1, longest_s=15), 7)) == [1, 2, 4, 8, 15, 15, 15]
    assert list(islice(delays_s(0.25), 4)) == [0.25, 0.5, 1, 2]


def test_jitter_only_shortens_a_delay() -> None:
    for _ in range(100):
        for delay_s, whole_s in zip(delays_s(1, longest_s=4, jitter=0.5), (1, 2, 4, 4), strict=False):
            assert whole_s / 2 <= delay_s <= whole_s
