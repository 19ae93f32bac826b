"""A configuration's text, read by the rules of YAML 1.2, with the line of every value.

PyYAML's own rules are those of YAML 1.1, in which `no` is false, `0100` is 64, `1e-5` is a text, and of two equal keys
the first is lost. Here `1e-5` is a number, and what the two versions read differently, or nobody can have meant, is an
error that names the line. `${NAME}` is the environment variable of that name.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from fusion.errors import ConfigError

Place = tuple[str | int, ...]
"""Keys and indices from the root to a value."""

_NULL, _BOOL, _INT, _FLOAT = (f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float"))
_RULES = (  # of YAML 1.2's core schema; octal numbers are 0o17 there
    (_NULL, re.compile(r"~|null|Null|NULL|"), ["~", "n", "N", ""]),
    (_BOOL, re.compile(r"true|True|TRUE|false|False|FALSE"), list("tTfF")),
    (_INT, re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+"), list("-+0123456789")),
    (_FLOAT, re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"), list("-+.0123456789")),
    (_FLOAT, re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"), list("-+.")),
)
_SWITCH = re.compile(r"yes|no|on|off", re.IGNORECASE)
_OCTAL = re.compile(r"[-+]?0[0-9_]+")
_NOT_FINITE = re.compile(r"[-+]?\.?(inf|infinity|nan)", re.IGNORECASE)
_VARIABLE = re.compile(r"\$\{([^}]*)\}")
_BARE_VARIABLE = re.compile(r"\$([A-Za-z_][A-Za-z0-9_]*)")
_PATHS = {"store", "data", "cache", "weights", "architecture", "ca_bundle"}
"""Keys whose values are paths: a `$NAME` there was meant to be filled in; a class may be called `$NAME`."""


@dataclass(frozen=True)
class Document:
    """The values of a configuration file, and the line on which each of them begins, from 1."""

    values: dict[str, Any]
    lines: Mapping[Place, int]


class _Loader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2's core schema. `<<` still merges, as anchors are of little use without it."""


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in _RULES:
    _Loader.add_implicit_resolver(_tag, re.compile(f"^(?:{_pattern.pattern})$", _pattern.flags), _first)
_Loader.add_implicit_resolver("tag:yaml.org,2002:merge", re.compile(r"^<<$"), ["<"])


def _integer(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    text = loader.construct_scalar(node)
    return int(text, 0) if text.startswith(("0o", "0x")) else int(text)


def _decimal(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> float:
    return float(loader.construct_scalar(node).replace(".inf", "inf").replace(".nan", "nan"))


_Loader.add_constructor(_INT, _integer)
_Loader.add_constructor(_FLOAT, _decimal)


def read_yaml(path: Path) -> Document:
    """Read a configuration file. Raises `ConfigError` with every mistake and its line."""
    try:
        text = path.read_text()
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} can't be read: {error}") from error
    loader = _Loader(text)
    try:
        root = loader.get_single_node()
        problems = list(_problems(root, set())) if root else []
        if problems:
            raise ConfigError(f"{path} is not a valid configuration:\n" + "\n".join(f"  {p}" for p in problems))
        values = loader.construct_document(root) if root else None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {error}") from error
    finally:
        loader.dispose()
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must be a mapping with the keys store, base and tasks")
    lines = dict(_lines(root, ()))
    expanded: dict[str, Any] = {}
    missing: list[str] = []
    for key, value in values.items():
        expanded[key] = _expanded(value, (key,), lines, missing)
    if missing:
        raise ConfigError(f"{path} is not a valid configuration:\n" + "\n".join(f"  {p}" for p in missing))
    return Document(expanded, lines)


def _problems(node: yaml.Node, seen: set[int]) -> Iterator[str]:
    """Values that the versions of YAML read differently, keys given twice, and numbers that are none."""
    if id(node) in seen:  # an alias
        return
    seen.add(id(node))
    if isinstance(node, yaml.ScalarNode):
        yield from _scalar_problems(node)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _problems(item, seen)
    elif isinstance(node, yaml.MappingNode):
        first: dict[str, int] = {}
        for key, value in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else None
            if name in first and name != "<<":
                yield f"line {_line(key)}: the key {name!r} is given twice, first on line {first[name]}: merge the two"
            elif name is not None:
                first[name] = _line(key)
            yield from _problems(key, seen)
            yield from _problems(value, seen)


def _scalar_problems(node: yaml.ScalarNode) -> Iterator[str]:
    if node.style is not None:  # quoted or a block: a text, as it stands
        return
    text = node.value
    where = f"line {_line(node)}: {text}"
    if _SWITCH.fullmatch(text):
        yield f"{where} is true or false to some readers of YAML and a text to others: write true or false, or '{text}'"
    elif _OCTAL.fullmatch(text):
        plain = str(int(text.replace("_", "")))
        yield f"{where} is {plain} to some readers of YAML and octal to others: write {plain}, or '{text}' for a text"
    elif _NOT_FINITE.fullmatch(text):
        yield f"{where} is no number that an option can have: write a finite one, or '{text}' for a text"
    elif node.tag == _FLOAT and not math.isfinite(float(text)):
        yield f"{where} is larger than any number that can be kept: write a finite one"


def _lines(node: yaml.Node | None, place: Place) -> Iterator[tuple[Place, int]]:
    if node is None or len(place) > 20:  # deeper than any option, and an alias may lead into itself
        return
    yield place, _line(node)
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield from _lines(item, (*place, index))
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                yield (*place, key.value), _line(key)
                yield from ((inner, line) for inner, line in _lines(value, (*place, key.value)) if inner[:-1] != place)


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _expanded(value: Any, place: Place, lines: Mapping[Place, int], missing: list[str]) -> Any:
    """A value with its environment variables filled in; what is not set is added to `missing`."""
    if isinstance(value, dict):
        return {key: _expanded(inner, (*place, key), lines, missing) for key, inner in value.items()}
    if isinstance(value, list):
        return [_expanded(inner, (*place, index), lines, missing) for index, inner in enumerate(value)]
    if not isinstance(value, str):
        return value
    where = f"line {lines.get(place, '?')}: {value!r}"
    if place[-1] in _PATHS and (bare := _BARE_VARIABLE.search(value)):
        missing.append(f"{where}: write ${{{bare[1]}}} for the environment variable; it is not expanded without braces")
        return value

    def fill(found: re.Match[str]) -> str:
        name = found[1]
        if name not in os.environ:
            missing.append(f"{where}: the environment variable {name!r} is not set")
        return os.environ.get(name, "")

    return _VARIABLE.sub(fill, value)
