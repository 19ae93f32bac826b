"""The tables of options in `docs/operating.md`, from the options themselves.

`python -m cluster.config_docs docs/operating.md` writes them anew between their markers; a test compares.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import MISSING
from pathlib import Path
from typing import Any

from cluster.config import BaseConfig, Config, FusionConfig, TaskConfig
from cluster.config_sections import Option, is_section, keys_of, options_of, texts_of
from cluster.session import RayOptions
from fusion.answers.options import PredictOptions
from fusion.store import S3Options
from serving.options import ServeOptions
from training.lanes.capacity import LaneOptions
from training.recipe import Recipe

TABLES: dict[str, type] = {
    "top level": Config,
    "base": BaseConfig,
    "tasks": TaskConfig,
    "train, the recipe": Recipe,
    "train, the lanes": LaneOptions,
    "fusion": FusionConfig,
    "predict": PredictOptions,
    "serve": ServeOptions,
    "ray": RayOptions,
    "s3": S3Options,
}
"""A table for each section. `unseen` has two keys of `tasks`, and `train` is two components' options in one."""

_TABLE = re.compile(r"(<!-- options: (.+?) -->\n).*?(<!-- end of options -->)", re.DOTALL)


def with_tables(page: str) -> str:
    """A page with the table of every section in its place, as it is now."""
    return _TABLE.sub(lambda found: f"{found[1]}\n{table(TABLES[found[2]])}\n{found[3]}", page)


def table(section: type) -> str:
    """A section's options as a Markdown table."""
    lines = ["| key | default | meaning |", "|---|---|---|", *_rows(section)]
    return "".join(f"{line}\n" for line in lines)


def _rows(section: type, prefix: str = "") -> Iterator[str]:
    """Also of sections inside of it; the configuration's own have tables of their own."""
    texts = texts_of(section)
    left_out = keys_of(Recipe) if section is TaskConfig else []
    for option in options_of(section):
        if is_section(option.kind) and section is not Config:
            yield from _rows(option.kind, f"{prefix}{option.name}.")
        elif option.name not in left_out:
            text = texts.get(option.name, "").replace("|", "\\|")
            yield f"| `{prefix}{option.name}` | {_default(option)} | {text} |"


def _default(option: Option) -> str:
    if option.default is MISSING:
        return "required"
    if is_section(option.kind):
        return "see below"
    return f"`{_yaml(option.default)}`"


def _yaml(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


if __name__ == "__main__":
    place = Path(sys.argv[1])
    place.write_text(with_tables(place.read_text()))
