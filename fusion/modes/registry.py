"""The known modes: those that files of this folder register, and those that a program registers itself."""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from importlib import import_module
from typing import Any, TypeVar

from fusion.errors import ConfigError
from fusion.modes.mode import Mode

DEFAULT_MODE = "lowrank"

_registered: dict[str, type[Mode]] = {}
_Mode = TypeVar("_Mode", bound=type[Mode])


def register(mode: _Mode) -> _Mode:
    """Class decorator: every command and configuration of this process then knows the mode by its name."""
    _registered[mode.name] = mode
    return mode


def unregister(name: str) -> None:
    """Undo `register`."""
    del _registered[name]


def modes() -> dict[str, type[Mode]]:
    """All modes by name, in alphabetical order."""
    _import_folder()
    return dict(sorted(_registered.items()))


def mode_class(name: Any) -> type[Mode]:
    """The mode with this name. Raises `ConfigError`."""
    known = modes()
    if name not in known:
        *others, last = known
        raise ConfigError(f"fusion mode {name!r} is unknown: choose {', '.join(others)} or {last}")
    return known[name]


def open_mode(settings: Mapping[str, Any]) -> Mode:
    """The mode that `settings` (of a manifest or a configuration) describes. Raises `ConfigError`."""
    options = dict(settings)
    mode = mode_class(options.pop("name", None))
    if foreign := sorted(options.keys() - {field.name for field in fields(mode)}):
        raise ConfigError(
            f"fusion mode {mode.name!r} has no option {' or '.join(foreign)}: it belongs to another mode, or a newer "
            "release wrote these settings"
        )
    return mode(**options)


def modes_with(option: str) -> list[str]:
    """The names of the modes that have this option; empty if none has."""
    return [name for name, mode in modes().items() if option in {field.name for field in fields(mode)}]


def in_words(settings: Mapping[str, Any]) -> str:
    """A mode as messages show it: `joint`, `signed (bits 2)`, `iterative (scales row, dtype float16)`."""
    options = ", ".join(f"{key} {value}" for key, value in settings.items() if key != "name")
    return f"{settings.get('name')}" + (f" ({options})" if options else "")


@cache
def _import_folder() -> None:
    package = import_module("fusion.modes")
    for module in pkgutil.iter_modules(package.__path__):
        import_module(f"fusion.modes.{module.name}")
