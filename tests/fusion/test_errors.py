"""Errors that cross a process boundary: users see the one that was raised, not its wrapper."""

from __future__ import annotations

from fusion.errors import StoreUnavailableError, own_cause


class Wrapped(Exception):
    """As Ray wraps what a task raised."""

    def __init__(self, cause: object) -> None:
        super().__init__("a traceback")
        self.cause = cause


def test_our_own_error_comes_back_as_it_was_raised() -> None:
    error = StoreUnavailableError("the store did not answer")
    assert own_cause(Wrapped(error)) is error


def test_a_bug_on_the_other_side_is_not_unwrapped() -> None:
    assert own_cause(Wrapped(ZeroDivisionError())) is None
    assert own_cause(RuntimeError()) is None
