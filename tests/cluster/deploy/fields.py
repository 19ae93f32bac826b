"""A strict check of the fields that a document uses: an API server may drop an unknown one without a word."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[3]
DEPLOY = ROOT / "cluster" / "deploy"


class Shape(dict[str, Any]):
    """An object's fields. `required` names those that must be there; the key `*` allows any other key."""

    def __init__(self, required: str = "", /, **fields: Any) -> None:
        super().__init__(fields)
        self.required = required.split()


def problems(value: Any, shape: Any, where: str = "") -> Iterator[str]:
    """Every difference between a value and its shape.

    A shape is a `Shape`, a list of one shape, a tuple of allowed values, a type, a pattern, or a function that yields
    problems of its own.
    """
    if isinstance(shape, Shape):
        if not isinstance(value, dict):
            yield f"{where}: {value!r} is not an object"
            return
        yield from (f"{where}: {name} is missing" for name in shape.required if name not in value)
        for key, part in value.items():
            inner = shape.get(key, shape.get("*"))
            if inner is None:
                yield f"{where}.{key}: unknown field"
            else:
                yield from problems(part, inner, f"{where}.{key}")
    elif isinstance(shape, list):
        if not isinstance(value, list):
            yield f"{where}: {value!r} is not a list"
            return
        for number, part in enumerate(value):
            yield from problems(part, shape[0], f"{where}[{number}]")
    elif isinstance(shape, tuple):
        if value not in shape:
            yield f"{where}: {value!r} is not one of {shape}"
    elif isinstance(shape, type):
        if not isinstance(value, shape) or (isinstance(value, bool) and shape is not bool):
            yield f"{where}: {value!r} is not a {shape.__name__}"
    elif isinstance(shape, re.Pattern):
        if not isinstance(value, str) or not shape.fullmatch(value):
            yield f"{where}: {value!r} is not like {shape.pattern}"
    else:
        yield from (f"{where}: {problem}" for problem in shape(value))


def documents(path: Path) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def typos(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Copies of a document with one key misspelt, each with where: every check has to refuse every one of them."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield (*path, key), {(f"{key}x" if name == key else name): inner for name, inner in value.items()}
            yield from ((where, {**value, key: changed}) for where, changed in typos(part, (*path, key)))
    elif isinstance(value, list):
        for number, part in enumerate(value):
            for where, changed in typos(part, (*path, number)):
                yield where, [*value[:number], changed, *value[number + 1 :]]


Check = Callable[[Any], Iterator[str]]
