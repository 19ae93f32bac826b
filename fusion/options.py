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

import ast
import inspect
import operator
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cache
from itertools import pairwise
from types import NoneType, UnionType
from typing import Annotated, Any, ClassVar, Literal, Union, get_args, get_origin, get_type_hints

from annotated_types import Ge, GroupedMetadata, Gt, Le, Lt

from fusion.errors import ConfigError

_BOUNDS = {Gt: ("gt", "above"), Ge: ("ge", "at least"), Lt: ("lt", "below"), Le: ("le", "at most")}
"""Each bound's attribute, which is also the name of its operator, and its words in messages."""


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
            yield f"{name} is {value!r}, it must be {needed}"


@cache
def hints(kind: Any) -> dict[str, Any]:
    """Types of a dataclass's fields, with their bounds."""
    found = get_type_hints(kind, include_extras=True)
    return {field.name: found[field.name] for field in fields(kind)}


@cache
def texts(kind: Any) -> dict[str, str]:
    """The docstring below each option of a class, in one line; inherited options included."""
    found: dict[str, str] = {}
    for owner in reversed(kind.__mro__):
        if owner.__module__.partition(".")[0] not in ("builtins", "abc", "pydantic"):
            found |= _attribute_docstrings(owner)
    return found


def _attribute_docstrings(owner: type) -> dict[str, str]:
    try:
        source = textwrap.dedent(inspect.getsource(owner))
    except (OSError, TypeError):  # a class made at run time has no source
        return {}
    (body,) = (node.body for node in ast.parse(source).body if isinstance(node, ast.ClassDef))
    return {
        before.target.id: " ".join(inspect.cleandoc(text.value.value).split())
        for before, text in pairwise(body)
        if isinstance(before, ast.AnnAssign)
        and isinstance(before.target, ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
        and isinstance(text.value.value, str)
    }


def _needed(value: Any, hint: Any) -> str:
    """What a value must be, in words; empty if it is."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        if value is None and NoneType in arguments:
            return ""
        needed = [_needed(value, member) for member in arguments if member is not NoneType]
        return " or ".join(needed) if all(needed) else ""
    if origin is Literal:
        *others, last = map(repr, arguments)
        return "" if value in arguments else " or ".join([", ".join(others), last] if others else [last])
    if origin is Annotated:
        bounds = [bound for part in arguments[1:] for bound in (part if isinstance(part, GroupedMetadata) else [part])]
        right_kind = isinstance(value, int if arguments[0] is int else int | float) and not isinstance(value, bool)
        if right_kind and all(_is_met(value, bound) for bound in bounds):
            return ""
        words = " and ".join(f"{_BOUNDS[type(bound)][1]} {_limit(bound)}" for bound in bounds)
        return words if right_kind else f"a {'whole ' if arguments[0] is int else ''}number, {words}"
    return ""


def _is_met(value: Any, bound: Any) -> bool:
    return bool(getattr(operator, _BOUNDS[type(bound)][0])(value, _limit(bound)))


def _limit(bound: Any) -> Any:
    return getattr(bound, _BOUNDS[type(bound)][0])
