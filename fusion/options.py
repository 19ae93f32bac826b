"""Options that a component declares: each with its type, default, range and text, in one frozen dataclass.

The section of a configuration is that dataclass itself. Pydantic reads YAML into it by the same annotations that
`Options` checks when the dataclass is made in Python, so an option is written down once. Pydantic is not imported here:
`condu fuse` reads no configuration and should start fast.

    @dataclass(frozen=True)
    class WatchOptions(Options):
        poll_s: Annotated[float, Gt(0)] = 2.0
        \"\"\"Seconds between two looks at the store.\"\"\"
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, ClassVar, Literal, Union, get_args, get_origin, get_type_hints

from annotated_types import Ge, GroupedMetadata, Gt, Le, Lt

from fusion.errors import ConfigError

_BOUNDS = {Gt: ("gt", "above"), Ge: ("ge", "at least"), Lt: ("lt", "below"), Le: ("le", "at most")}
"""Each bound's attribute, which is its operator's name too, and how it reads."""


class OptionsError(ConfigError):
    """Options that are out of range or contradict each other. Each problem is a sentence that names its option."""

    def __init__(self, *problems: str) -> None:
        super().__init__(*problems)
        self.problems = problems

    def __str__(self) -> str:
        return "; ".join(self.problems)


@dataclass(frozen=True)
class Options:
    """Base of a component's options. Raises `OptionsError` with all problems at once.

    Ranges are `annotated_types` bounds, choices are `Literal`. The text of an option is the docstring below it.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        if problems := [*_out_of_range(self), *self.contradictions()]:
            raise OptionsError(*problems)

    def contradictions(self) -> list[str]:
        """Problems that one option alone does not show. Values may be out of range."""
        return []


def _out_of_range(options: Options) -> Iterator[str]:
    kind: Any = type(options)
    for name, hint in hints(kind).items():
        value = getattr(options, name)
        if needed := _needed(value, hint):
            yield f"{name} is {value!r}, it has to be {needed}"


@cache
def hints(kind: Any) -> dict[str, Any]:
    """Types of a dataclass's fields, with their bounds."""
    found = get_type_hints(kind, include_extras=True)
    return {field.name: found[field.name] for field in fields(kind)}


def _needed(value: Any, hint: Any) -> str:
    """What a value would have to be, in words; empty where it is that."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        if value is None and NoneType in arguments:
            return ""
        needed = [_needed(value, member) for member in arguments if member is not NoneType]
        return " or ".join(needed) if all(needed) else ""
    if origin is Literal:
        return "" if value in arguments else " or ".join(map(repr, arguments))
    if origin is Annotated:
        bounds = [bound for part in arguments[1:] for bound in (part if isinstance(part, GroupedMetadata) else [part])]
        met = isinstance(value, int | float) and all(_is_met(value, bound) for bound in bounds)
        return "" if met else " and ".join(f"{_BOUNDS[type(bound)][1]} {_limit(bound)}" for bound in bounds)
    return ""


def _is_met(value: Any, bound: Any) -> bool:
    return bool(getattr(operator, _BOUNDS[type(bound)][0])(value, _limit(bound)))


def _limit(bound: Any) -> Any:
    return getattr(bound, _BOUNDS[type(bound)][0])
