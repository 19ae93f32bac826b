"""Rebuilt experts in memory, within a budget of bytes: the least recently used are evicted, and concurrent requests
for a cold one build it once.

One lock per key, so that two cold experts load in parallel. An expert that is evicted while a request uses it stays in
memory until that request ends: only its reference count frees it.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

from fusion.errors import ConfigError

Value = TypeVar("Value")


class ExpertCache(Generic[Value]):
    """Values by key, of at most `budget_bytes` together. The last one used stays even if it alone is larger.

    Args:
        size_of: bytes of a value.
    """

    def __init__(self, budget_bytes: int, size_of: Callable[[Value], int]) -> None:
        if budget_bytes < 1:
            raise ConfigError(f"{budget_bytes} bytes of memory for experts can hold none: give at least one's size")
        self.budget_bytes = budget_bytes
        self.used_bytes = 0
        self._size_of = size_of
        self._values: OrderedDict[str, Value] = OrderedDict()
        self._building: dict[str, threading.Lock] = {}
        self._lock = threading.Lock()

    def get(self, key: str, build: Callable[[], Value]) -> Value:
        """The value of a key, built by the first caller. An error of `build` is raised to that caller; others retry."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
            building = self._building.setdefault(key, threading.Lock())
        with building:
            with self._lock:
                if key in self._values:
                    return self._values[key]
            try:
                value = build()
            except BaseException:
                with self._lock:
                    self._building.pop(key, None)
                raise
            with self._lock:
                self._values[key] = value
                self.used_bytes += self._size_of(value)
                self._building.pop(key, None)
                while self.used_bytes > self.budget_bytes and len(self._values) > 1:
                    self.used_bytes -= self._size_of(self._values.popitem(last=False)[1])
            return value

    def peek(self, key: str) -> Value | None:
        """The value of a key if it is in memory; counts as a use."""
        with self._lock:
            if key not in self._values:
                return None
            self._values.move_to_end(key)
            return self._values[key]

    def keys(self) -> list[str]:
        """Keys in memory, least recently used first."""
        with self._lock:
            return list(self._values)
