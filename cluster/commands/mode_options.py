"""The options of every fusion mode as options of a command: read from the modes, so that a new mode brings its own."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import fields
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer

from fusion.options import hints, texts

PARAMETER = "mode_options"
"""A command with a parameter of this name gets, as a dict, the modes' options that were given."""


def expand_mode_options(command: Callable[..., None]) -> Callable[..., None]:
    """The command with the options of all modes in place of `mode_options`; one without that parameter is unchanged."""
    parameters = inspect.signature(command, eval_str=True).parameters
    if PARAMETER not in parameters:
        return command
    added = _options()

    def expanded(**values: Any) -> None:
        given = {name: value for name in added if (value := values.pop(name)) is not None}
        command(**values, **{PARAMETER: given})

    signature = [p for name, p in parameters.items() if name != PARAMETER] + list(added.values())
    expanded.__doc__ = command.__doc__
    expanded.__signature__ = inspect.Signature(signature)  # type: ignore[attr-defined]
    expanded.__annotations__ = {parameter.name: parameter.annotation for parameter in signature}
    return expanded


def _options() -> dict[str, inspect.Parameter]:
    from fusion.modes import modes, modes_with

    found: dict[str, inspect.Parameter] = {}
    for mode in modes().values():
        for field in fields(mode):
            help_text = (
                f"{texts(mode)[field.name]} Default: {field.default}. Mode {' and '.join(modes_with(field.name))}."
            )
            kind = Annotated[_plain(hints(mode)[field.name]) | None, typer.Option(help=help_text)]  # type: ignore[valid-type, operator]
            found[field.name] = inspect.Parameter(
                field.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind
            )
    return found


def _plain(hint: Any) -> type:
    """The type that the command line parses; the mode checks ranges and choices, and None is "not given"."""
    if get_origin(hint) in (Union, UnionType):
        return _plain(next(kind for kind in get_args(hint) if kind is not NoneType))
    if get_origin(hint) is Annotated:
        return _plain(get_args(hint)[0])
    if get_origin(hint) is Literal:
        return type(get_args(hint)[0])
    return hint if isinstance(hint, type) else str
