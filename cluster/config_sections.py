"""What a section of the configuration holds, whether it is a component's dataclass or a model of the file."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import Any, get_args

from pydantic import BaseModel

from fusion.options import hints, texts


@dataclass(frozen=True)
class Option:
    """One key of a section."""

    name: str
    kind: Any
    """Its type."""
    default: Any
    """`MISSING` where the key is required."""
    text: str = ""
    """What it means, from the docstring below it."""


def options_of(section: type) -> list[Option]:
    """The options of a section, in the order of their declaration."""
    if is_dataclass(section):
        known = texts(section)
        return [Option(f.name, hints(section)[f.name], f.default, known.get(f.name, "")) for f in fields(section)]
    assert issubclass(section, BaseModel), f"{section} is not a section"
    return [
        Option(
            name,
            field.annotation,
            MISSING if field.is_required() else field.default,
            field.description or texts(section).get(name, ""),
        )
        for name, field in section.model_fields.items()
    ]


def keys_of(section: type) -> list[str]:
    """The keys of a section."""
    return [option.name for option in options_of(section)]


def section_in(section: type, key: str) -> type | None:
    """The section under a key, also if the key holds a list of sections; None: a plain value, or no such key."""
    kinds = [option.kind for option in options_of(section) if option.name == key]
    nested = [part for kind in kinds for part in (kind, *get_args(kind)) if is_section(part)]
    return nested[0] if nested else None


def is_section(kind: Any) -> bool:
    """Whether a type holds options of its own."""
    return isinstance(kind, type) and (is_dataclass(kind) or issubclass(kind, BaseModel))
