"""The expert cache: built once, evicted by age, and an error spoils nothing."""

from __future__ import annotations

import threading
import time

import pytest

from fusion.answers.expert_cache import ExpertCache
from fusion.errors import ConfigError


def test_the_least_recently_used_goes_first() -> None:
    cache: ExpertCache[str] = ExpertCache(6, len)
    for key in ("aa", "bb", "cc", "aa", "dddd"):
        cache.get(key, lambda key=key: key.upper())
    assert (cache.keys(), cache.used_bytes) == (["aa", "dddd"], 6)


def test_an_expert_larger_than_the_budget_is_kept_until_the_next_one() -> None:
    cache: ExpertCache[str] = ExpertCache(3, len)
    cache.get("a", lambda: "large")
    assert cache.keys() == ["a"]
    cache.get("b", lambda: "b")
    assert (cache.keys(), cache.used_bytes) == (["b"], 1)


def test_a_burst_on_a_cold_expert_builds_it_once() -> None:
    cache: ExpertCache[int] = ExpertCache(2, lambda _: 1)
    built: list[int] = []

    def build() -> int:
        time.sleep(0.05)
        built.append(1)
        return 7

    found: list[int] = []
    threads = [threading.Thread(target=lambda: found.append(cache.get("x", build))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [7] * 8
    assert built == [1]


def test_two_cold_experts_are_built_side_by_side() -> None:
    cache: ExpertCache[int] = ExpertCache(2, lambda _: 1)
    both = threading.Barrier(2, timeout=5)
    threads = [threading.Thread(target=lambda k=k: cache.get(k, lambda: both.wait())) for k in ("a", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(cache.keys()) == ["a", "b"]


def test_a_failed_build_is_tried_again_by_the_next_who_asks() -> None:
    cache: ExpertCache[int] = ExpertCache(1, lambda _: 1)

    def fail() -> int:
        raise OSError("store is gone")

    with pytest.raises(OSError, match="store is gone"):
        cache.get("x", fail)
    assert cache.get("x", lambda: 3) == 3


def test_a_cache_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="can hold none"):
        ExpertCache(0, len)
