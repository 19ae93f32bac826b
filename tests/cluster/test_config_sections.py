"""Each option is defined once: a section of the file, and a table of the manual, is the component's own options."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import MISSING
from pathlib import Path
from typing import Any

import pytest

from cluster.config import Config, FusionConfig, ModeConfig, TaskConfig
from cluster.config_docs import MODES_TABLE, TABLES, modes_table, with_tables
from cluster.config_sections import keys_of, options_of, section_in
from cluster.session import RayOptions
from fusion.answers.label_spaces import Query
from fusion.answers.options import PredictOptions
from fusion.answers.predictor import ModelShelf, Predictor
from fusion.fusion_options import FusionOptions
from fusion.modes import Mode, modes
from fusion.options import hints
from fusion.store import S3Options
from serving.options import ServeOptions, ServiceOptions
from training.expert import train_expert
from training.finetune import finetune
from training.lanes.capacity import LaneOptions
from training.recipe import Recipe

ROOT = Path(__file__).resolve().parents[2]
COMPONENTS: dict[str, list[Any]] = {
    "train": [Recipe, LaneOptions],
    "predict": [PredictOptions],
    "serve": [ServeOptions],
    "ray": [RayOptions],
    "s3": [S3Options],
}
"""The components whose options make up a section."""
FILE_ONLY = {"base", "tasks", "unseen", "fusion", "showcase", "demo"}
"""Sections that belong to the file alone, not to one component."""


def sections(section: type = Config, path: str = "") -> Iterator[tuple[str, type]]:
    """Every section of a configuration, and where it is."""
    yield path, section
    for key in keys_of(section):
        if nested := section_in(section, key):
            yield from sections(nested, f"{path}{key}.")


def test_every_section_is_walked() -> None:
    named = {f"{key}." for key in (*COMPONENTS, *FILE_ONLY)}
    assert {path for path, _ in sections()} == {
        "",
        "serve.replicas.",
        "serve.limits.",
        "serve.log.",
        "demo.modes.",
        *named,
    }


@pytest.mark.parametrize(("path", "section"), list(sections()), ids=[path for path, _ in sections()])
def test_every_option_is_declared_once_and_has_a_text(path: str, section: type) -> None:
    for option in options_of(section):
        owners = [owner for owner in section.__mro__ if option.name in inspect.get_annotations(owner)]
        assert len(owners) == 1, f"{path}{option.name}"
        if section is TaskConfig and option.name in keys_of(Recipe):
            assert (option.kind, option.default) == (hints(Recipe)[option.name] | None, None)
        assert option.text, f"{path}{option.name}"


@pytest.mark.parametrize("key", COMPONENTS)
def test_a_section_is_its_components_own_options(key: str) -> None:
    section = section_in(Config, key)
    assert section is not None
    assert all(issubclass(section, component) for component in COMPONENTS[key])
    declared = {option.name: option for component in COMPONENTS[key] for option in options_of(component)}
    assert {option.name: option for option in options_of(section)} == declared
    in_file = {option.name: option.default for option in options_of(Config)}[key]
    for component in COMPONENTS[key]:
        for name in keys_of(component):
            assert getattr(in_file, name) == getattr(component(), name) == declared[name].default


def test_the_section_fusion_is_a_mode_and_the_options_of_the_actor() -> None:
    section = section_in(Config, "fusion")
    assert section is not None
    declared = [*options_of(ModeConfig), *options_of(FusionOptions)]
    assert [(o.name, o.default, o.text) for o in options_of(section)] == [(o.name, o.default, o.text) for o in declared]
    assert FusionConfig().options() == FusionOptions()


@pytest.mark.parametrize("mode", modes().values(), ids=modes())
def test_every_option_of_a_mode_has_a_default_a_text_and_a_row_in_the_manual(mode: type[Mode]) -> None:
    for option in options_of(mode):
        assert option.default is not MISSING
        assert option.text
        assert option.text in modes_table()


def test_a_services_options_are_sections_of_the_file_and_the_store() -> None:
    told = {option.name: option.default for option in options_of(ServiceOptions)}
    in_file = [*options_of(PredictOptions), *options_of(ServeOptions)]
    assert told == {"address": MISSING, "host_is_told": True, **{option.name: option.default for option in in_file}}


@pytest.mark.parametrize(
    ("function", "parameter", "default"),
    [
        (Predictor, "expert_memory", ServeOptions.expert_memory),
        (ModelShelf, "expert_memory", ServeOptions.expert_memory),
        (Query, "top_k", PredictOptions.top_k),
        (train_expert, "num_loader_threads", LaneOptions.num_loader_threads),
        (finetune, "num_loader_threads", LaneOptions.num_loader_threads),
    ],
)
def test_without_a_configuration_the_same_defaults_apply(function: Any, parameter: str, default: object) -> None:
    assert inspect.signature(function).parameters[parameter].default == default


def test_the_tables_of_the_manual_are_the_options() -> None:
    page = (ROOT / "docs" / "operating.md").read_text()
    assert all(f"<!-- options: {name} -->" in page for name in [*TABLES, MODES_TABLE])
    assert with_tables(page) == page, "run: python -m cluster.config_docs docs/operating.md"
