"""What a section of the configuration holds, whether it is a component's dataclass or a model of the file."""

from __future__ import annotations

import ast
import inspect
import textwrap
from dataclasses import MISSING, dataclass, fields, is_dataclass
from itertools import pairwise
from typing import Any, get_args

from pydantic import BaseModel

from fusion.options import hints


@dataclass(frozen=True)
class Option:
    """One key of a section."""

    name: str
    kind: Any
    """Its type."""
    default: Any
    """`MISSING` where the key is required."""


def options_of(section: type) -> list[Option]:
    """The options of a section, in the order of their declaration."""
    if is_dataclass(section):
        return [Option(field.name, hints(section)[field.name], field.default) for field in fields(section)]
    assert issubclass(section, BaseModel), f"{section} is not a section"
    return [
        Option(name, field.annotation, MISSING if field.is_required() else field.default)
        for name, field in section.model_fields.items()
    ]


def keys_of(section: type) -> list[str]:
    """The keys of a section."""
    return [option.name for option in options_of(section)]


def section_in(section: type, key: str) -> type | None:
    """The section under a key, also where the key holds a list of them; None: a plain value, or no key at all."""
    kinds = [option.kind for option in options_of(section) if option.name == key]
    nested = [part for kind in kinds for part in (kind, *get_args(kind)) if is_section(part)]
    return nested[0] if nested else None


def texts_of(section: type) -> dict[str, str]:
    """The docstring below each option, in one line; inherited options included."""
    texts: dict[str, str] = {}
    for owner in reversed(section.__mro__):
        if is_section(owner) and owner.__module__.partition(".")[0] != "pydantic":
            texts |= _attribute_docstrings(owner)
    return texts


def is_section(kind: Any) -> bool:
    """Whether a type holds options of its own."""
    return isinstance(kind, type) and (is_dataclass(kind) or issubclass(kind, BaseModel))


def _attribute_docstrings(owner: type) -> dict[str, str]:
    try:
        source = textwrap.dedent(inspect.getsource(owner))
    except (OSError, TypeError):  # made by a program
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
