"""Options that several commands have. Apart from them, so that a command imports no other's machinery."""

from __future__ import annotations

import csv
import re
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fusion.errors import ConfigError

if TYPE_CHECKING:
    from cluster.config import Config
    from fusion.store.address import StoreAddress

StoreOption = Annotated[
    str, typer.Option("--store", help="file:///folder, a path, or s3://bucket/prefix", metavar="URL")
]
WhereArgument = Annotated[
    str, typer.Argument(help="A configuration, or its store: file:///folder, a path, s3://…", metavar="CONFIG|STORE")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
_UNITS = {"m": "minutes", "h": "hours", "d": "days"}


def config_of(where: str) -> Config | None:
    """The configuration that a `WhereArgument` names; None where it is a store. Raises `ConfigError`."""
    if not where.endswith((".yaml", ".yml")):
        return None
    from cluster.config import load_config

    return load_config(Path(where))


def address_of(where: str) -> StoreAddress:
    """The store of a `WhereArgument`. Raises `ConfigError`."""
    if config := config_of(where):
        return config.address
    from fusion.store.address import StoreAddress  # it loads numpy, which a client can do without

    return StoreAddress(where)


def duration(text: str, option: str) -> timedelta:
    """`90d`, `12h` or `30m`. Raises `ConfigError` that names the option for what is none."""
    found = re.fullmatch(r"(\d{1,6})([mhd])", text)
    if not found or int(found[1]) == 0:
        raise ConfigError(f"{option} {text!r} is no time: write it such as 90d, 12h or 30m")
    return timedelta(**{_UNITS[found[2]]: int(found[1])})


def names_of(text: str | None, option: str) -> tuple[str, ...] | None:
    """The names in an option such as `cat,dog,"bird, flying"`: as in a line of CSV. None for None.

    Raises `ConfigError` for an empty name, or a quotation mark that is not closed.
    """
    if text is None:
        return None
    try:
        names = tuple(name.strip() for name in next(csv.reader([text], skipinitialspace=True, strict=True), []))
    except csv.Error as error:
        raise ConfigError(
            f"{option} {text!r} can't be read ({error}): separate names by commas, and put one that holds a comma in "
            "double quotes"
        ) from error
    if not names or not all(names):
        raise ConfigError(f"{option} {text!r} has an empty name")
    return names
