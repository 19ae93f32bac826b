"""Which modes there are: every file of this folder that registers one, and whatever a program registers beside them."""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from importlib import import_module
from typing import Any, TypeVar

from fusion.errors import ConfigError
from fusion.modes.mode import Mode

DEFAULT_MODE = "signed"

_registered: dict[str, type[Mode]] = {}
_Mode = TypeVar("_Mode", bound=type[Mode])


def register(mode: _Mode) -> _Mode:
    """Class decorator: makes a mode known under its name to every command and configuration of this process."""
    _registered[mode.name] = mode
    return mode


def unregister(name: str) -> None:
    """Forget a mode again."""
    del _registered[name]


def modes() -> dict[str, type[Mode]]:
    """All modes by name, in alphabetical order."""
    _import_folder()
    return dict(sorted(_registered.items()))


def mode_class(name: Any) -> type[Mode]:
    """The mode of a name. Raises `ConfigError`."""
    known = modes()
    if name not in known:
        *others, last = known
        raise ConfigError(f"fusion mode {name!r} is unknown: take {', '.join(others)} or {last}")
    return known[name]


def open_mode(settings: Mapping[str, Any]) -> Mode:
    """The mode that `settings` (of a manifest or a configuration) describes. Raises `ConfigError`."""
    options = dict(settings)
    mode = mode_class(options.pop("name", None))
    if options.keys() - {field.name for field in fields(mode)}:
        raise ConfigError(
            f"fusion mode {mode.name!r} does not take all of {', '.join(sorted(options))}: a newer release may have "
            "written it, or an option belongs to another mode"
        )
    return mode(**options)


def modes_with(option: str) -> list[str]:
    """The names of the modes that take an option, empty where none does."""
    return [name for name, mode in modes().items() if option in {field.name for field in fields(mode)}]


def in_words(settings: Mapping[str, Any]) -> str:
    """A mode as people are told of it: `joint`, `signed (bits 2)`, `iterative (scales row, dtype float16)`."""
    options = ", ".join(f"{key} {value}" for key, value in settings.items() if key != "name")
    return f"{settings.get('name')}" + (f" ({options})" if options else "")


@cache
def _import_folder() -> None:
    package = import_module("fusion.modes")
    for module in pkgutil.iter_modules(package.__path__):
        import_module(f"fusion.modes.{module.name}")
