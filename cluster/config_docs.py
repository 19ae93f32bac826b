"""The tables of options in `docs/operating.md`, generated from the options themselves.

`python -m cluster.config_docs docs/operating.md` regenerates them between their markers; a test checks
that they are up to date.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import MISSING
from pathlib import Path
from typing import Any

from cluster.config import BaseConfig, Config, ModeConfig, ShowcaseConfig, TaskConfig
from cluster.config_sections import Option, is_section, keys_of, options_of
from cluster.session import RayOptions
from fusion.answers.options import PredictOptions
from fusion.fusion_options import FusionOptions
from fusion.modes import modes
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
    "fusion": ModeConfig,
    "fusion, the actor": FusionOptions,
    "predict": PredictOptions,
    "serve": ServeOptions,
    "ray": RayOptions,
    "showcase": ShowcaseConfig,
    "s3": S3Options,
}
"""A table per section. `unseen` has two of the keys of `tasks`; `train` and `fusion` combine several components."""
MODES_TABLE = "fusion, the modes"

_TABLE = re.compile(r"(<!-- options: (.+?) -->\n).*?(<!-- end of options -->)", re.DOTALL)


def with_tables(page: str) -> str:
    """The page with every table between its markers regenerated."""
    tables = {name: table(section) for name, section in TABLES.items()} | {MODES_TABLE: modes_table()}
    return _TABLE.sub(lambda found: f"{found[1]}\n{tables[found[2]]}\n{found[3]}", page)


def table(section: type) -> str:
    """A section's options as a Markdown table."""
    lines = ["| key | default | meaning |", "|---|---|---|", *_rows(section)]
    return "".join(f"{line}\n" for line in lines)


def modes_table() -> str:
    """The options of every fusion mode; one that several modes declare alike appears once."""
    owners: dict[Option, list[str]] = {}
    for mode in modes().values():
        for option in options_of(mode):
            owners.setdefault(option, []).append(f"`{mode.name}`")
    lines = ["| key | mode | default | meaning |", "|---|---|---|---|"]
    lines += [f"| `{o.name}` | {', '.join(names)} | {_default(o)} | {_text(o)} |" for o, names in owners.items()]
    return "".join(f"{line}\n" for line in lines)


def _rows(section: type, prefix: str = "") -> Iterator[str]:
    """Rows of a section and those nested in it; the configuration's own sections have tables of their own."""
    left_out = keys_of(Recipe) if section is TaskConfig else []
    for option in options_of(section):
        if is_section(option.kind) and section is not Config:
            yield from _rows(option.kind, f"{prefix}{option.name}.")
        elif option.name not in left_out:
            yield f"| `{prefix}{option.name}` | {_default(option)} | {_text(option)} |"


def _text(option: Option) -> str:
    return option.text.replace("|", "\\|")


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
