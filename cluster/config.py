"""The configuration file: YAML, read into frozen records at the edge. Unknown keys are errors that name the right one.

A component's section is the component's own options class, with its defaults and texts. This module adds what only the
file has: the tasks, and which section belongs to which component. Paths are relative to the file itself, so that a
configuration means the same from every folder.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model, field_validator, model_validator

from cluster.config_sections import keys_of, options_of, section_in
from cluster.config_yaml import Place, read_yaml
from cluster.session import RayOptions
from fusion.answers.options import PredictOptions
from fusion.answers.rgb import parse_background
from fusion.errors import ConduError, ConfigError
from fusion.fusion_options import FusionOptions
from fusion.modes import DEFAULT_MODE, mode_class, modes_with, open_mode
from fusion.options import OptionsError
from fusion.store import S3Options
from fusion.store.address import StoreAddress
from fusion.versions.manifest import check_task_name
from serving.options import ServeOptions
from training.data.sources import absolute_source
from training.lanes.capacity import LaneOptions
from training.recipe import Recipe


class Section(BaseModel):
    """A part of the configuration: immutable, and a typo is an error, not a default."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class BaseConfig(Section):
    """The pre-trained CLIP."""

    architecture: str
    """An open_clip name such as `ViT-B-16`, or a `.json` file in open_clip's layout (`model_cfg`, `preprocess_cfg`)."""
    weights: str
    """A local `.safetensors` file, an open_clip tag such as `openai`, or `hf-hub:organisation/name` (downloaded by
    open_clip on the machine that runs the command)."""


class DataConfig(Section):
    """A named set of images."""

    name: str
    """`[a-z0-9][a-z0-9._-]{0,63}`, the only key of a task."""
    data: str
    """A folder, `s3://bucket/prefix/` or `torchvision:NAME`: see [A task's data](#a-tasks-data)."""

    @field_validator("name")
    @classmethod
    def _name(cls, name: str) -> str:
        return check_task_name(name)


class UnseenConfig(DataConfig):
    """Test images of a task that is never trained: they show what becomes of zero-shot."""


def fields_of(kind: type, *, optional: bool = False) -> dict[str, Any]:
    """A component's options as fields of a model; `optional`: None is allowed, and the default."""
    return {
        option.name: (option.kind | None, Field(None, description=option.text))
        if optional
        else (option.kind, Field(option.default, description=option.text))
        for option in options_of(kind)
    }


_RecipeOverrides: Any = create_model("RecipeOverrides", __base__=DataConfig, **fields_of(Recipe, optional=True))
"""Every option of the recipe; None: the value in `train`."""


class TaskConfig(_RecipeOverrides):
    """One task, and the options of its recipe that differ from `train`."""

    classes: tuple[str, ...] | None = None
    """Class names in the order of the labels. Null: those of the data."""
    templates: tuple[str, ...] | None = None
    """Prompts with one `{}` each. Null: those of the data."""
    aliases: dict[str, tuple[str, ...]] | None = None
    """Other texts that mean a class, such as `{"0": [zero, nought]}`. Null: those of the data."""
    background: str | None = None
    """Colour under transparent pixels, a CSS name or `#rrggbb`, in training and where the task is named. Null: that of
    the data, else white."""
    image_column: str | None = None
    """Column of a table that holds the images. Null: found by its name."""
    label_column: str | None = None
    """Column of a table that holds the labels. Null: found by its name."""

    @field_validator("background")
    @classmethod
    def _background(cls, colour: str | None) -> str | None:
        if colour is not None:
            parse_background(colour)
        return colour

    def overrides(self) -> dict[str, Any]:
        """The options of the recipe that are set here."""
        values = {field.name: getattr(self, field.name) for field in fields(Recipe)}
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True)
class TrainOptions(LaneOptions, Recipe):
    """How tasks are fine-tuned, and how they are spread over the cluster: one flat section."""

    def recipe(self, **overrides: Any) -> Recipe:
        """The recipe alone, with a task's own options. Raises `ConfigError`."""
        return Recipe(**{field.name: getattr(self, field.name) for field in fields(Recipe)} | overrides)


class ModeConfig(BaseModel):
    """A fusion mode and its options, which the mode's own class declares."""

    model_config = ConfigDict(extra="allow", frozen=True)  # the mode decides which keys are allowed

    mode: str = DEFAULT_MODE
    """How experts are fused. The mode's options are keys of the same section. A store keeps its mode until
    `condu fuse --from-archive` rebuilds it in another."""

    @model_validator(mode="after")
    def _options_are_the_modes(self) -> ModeConfig:
        options = self.model_extra or {}
        known = keys_of(mode_class(self.mode))
        problems = [self._foreign(name, value, known) for name, value in options.items() if name not in known]
        if problems:
            raise OptionsError(*problems)
        self.settings()
        return self

    def _foreign(self, name: str, value: Any, known: list[str]) -> str:
        if owners := modes_with(name):
            return f"{name}: {value} has no effect in mode {self.mode!r}: it belongs to {' and '.join(owners)}"
        near = difflib.get_close_matches(name, [*known, *type(self).model_fields], n=1, cutoff=0.5)
        return f"{name}: unknown key" + (f"; did you mean {near[0]!r}?" if near else "")

    def settings(self) -> dict[str, Any]:
        """As a manifest records them."""
        return open_mode({"name": self.mode, **(self.model_extra or {})}).settings()


_FusionSection: Any = create_model("FusionSection", __base__=ModeConfig, **fields_of(FusionOptions))


class FusionConfig(_FusionSection):
    """How experts become triggers: a mode's options and the fusion actor's, in one flat section."""

    @model_validator(mode="after")
    def _options_work(self) -> FusionConfig:
        self.options()
        return self

    def options(self) -> FusionOptions:
        """The fusion actor's options. Raises `OptionsError`."""
        return FusionOptions(**{name: getattr(self, name) for name in keys_of(FusionOptions)})


class DemoConfig(Section):
    """What `condu demo` shows beside the run."""

    modes: tuple[ModeConfig, ...] = ()
    """The same experts are also fused in these modes and measured, for comparison."""


class ShowcaseConfig(Section):
    """What a run puts into the store for the service's page at `/`, beside its figures."""

    samples: int = Field(default=0, ge=0, le=16)
    """Test images of each task that visitors of the page may try. They are stored as they are, for whoever may read the
    service."""


class Config(Section):
    """A whole configuration. `load_config` reads one."""

    store: str
    """`file:///folder`, a path, or `s3://bucket/prefix`."""
    base: BaseConfig
    """The pre-trained CLIP."""
    tasks: tuple[TaskConfig, ...] = ()
    """Fused in this order. `condu run` needs at least one."""
    unseen: tuple[UnseenConfig, ...] = ()
    """Test sets that are never trained on, each with `name` and `data`. They show what becomes of zero-shot."""
    train: TrainOptions = TrainOptions()
    """How tasks are fine-tuned, and how they are spread over the cluster."""
    fusion: FusionConfig = FusionConfig()
    """How experts become triggers, and what the triggers share."""
    predict: PredictOptions = PredictOptions()
    """How images are answered."""
    serve: ServeOptions = ServeOptions()
    """How the service runs."""
    ray: RayOptions = RayOptions()
    """Which Ray cluster is used."""
    s3: S3Options = S3Options()
    """How to reach S3."""
    showcase: ShowcaseConfig = ShowcaseConfig()
    """What a run puts into the store for the service's page, beside its figures."""
    demo: DemoConfig = DemoConfig()
    """What `condu demo` shows beside the run."""
    seed: int = 0
    """Seed of every task's random numbers. Part of an expert's identity."""
    cache: Path | None = None
    """Folder of the node cache. Null: `$CONDU_CACHE`, else `$XDG_CACHE_HOME/condu`, else `~/.cache/condu`."""
    cache_limit_gib: float | None = Field(default=None, gt=0)
    """What the node cache may take on each node, GiB: what was unused for longest goes. Null: half of its disk."""

    @model_validator(mode="after")
    def _tasks_work(self) -> Config:
        names = [task.name for task in self.tasks] + [task.name for task in self.unseen]
        problems = [
            f"task name {name!r} is used twice: a name is a task's only key"
            for name in sorted({name for name in names if names.count(name) > 1})
        ]
        for number, task in enumerate(self.tasks):
            try:
                self.recipe(task)
            except OptionsError as error:
                problems += [f"tasks.{number}: {problem}" for problem in error.problems]
        if problems:
            raise OptionsError(*problems)
        return self

    @property
    def address(self) -> StoreAddress:
        """The store's address."""
        limit = self.cache_limit_gib
        return StoreAddress(self.store, self.s3, self.cache, None if limit is None else int(limit * 2**30))

    def recipe(self, task: TaskConfig) -> Recipe:
        """A task's recipe: its own settings, else `train`'s, else the paper's."""
        return self.train.recipe(**task.overrides())


def load_config(path: Path) -> Config:
    """Read and check a configuration. Raises `ConfigError` with all mistakes at once."""
    document = read_yaml(path)
    return parse_config(document.values, folder=path.parent, where=str(path), lines=document.lines)


def parse_config(
    values: dict[str, Any], *, folder: Path, where: str, lines: Mapping[Place, int] | None = None
) -> Config:
    """Check a configuration that is in memory; relative paths are made absolute against `folder`.

    `lines`: where its values stand in a file, for messages.
    """
    try:
        config = Config.model_validate(values)
        config = _with_absolute_paths(config, folder.resolve())
    except ValidationError as error:
        mistakes = "\n".join(f"  {line}" for line in _mistakes(error, values, lines or {}))
        raise ConfigError(f"{where} is not a valid configuration:\n{mistakes}") from error
    except ConduError as error:
        raise ConfigError(f"{where} is not a valid configuration: {error}") from error
    return config


def _with_absolute_paths(config: Config, folder: Path) -> Config:
    files = {"architecture": ".json", "weights": ".safetensors"}  # other endings name something published
    base = {
        key: absolute_source(value, folder) if value.endswith(ending) else value
        for key, ending in files.items()
        for value in [getattr(config.base, key)]
    }
    sets = {
        name: tuple(t.model_copy(update={"data": absolute_source(t.data, folder)}) for t in getattr(config, name))
        for name in ("tasks", "unseen")
    }
    update = {
        "store": absolute_source(config.store, folder),
        "base": config.base.model_copy(update=base),
        "cache": config.cache and Path(absolute_source(str(config.cache), folder)),
        **sets,
    }
    return config.model_copy(update=update)


def _mistakes(error: ValidationError, values: dict[str, Any], lines: Mapping[Place, int]) -> Iterator[str]:
    """One line per mistake: where, what, and the closest valid key. In the order of the sections."""
    found: dict[str, list[str]] = {}
    line_of: dict[str, str] = {}
    for problem in error.errors():
        place, section = _place(problem["loc"], values)
        where = ".".join(map(str, place))
        if known := _nearest_line(place, lines):
            line_of[where] = f" (line {known})"
        messages, cause = found.setdefault(where, []), problem.get("ctx", {}).get("error")
        if problem["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
            near = difflib.get_close_matches(str(problem["loc"][-1]), keys_of(section), n=1, cutoff=0.5)
            messages.append("unknown key" + (f"; did you mean {near[0]!r}?" if near else ""))
        elif problem["type"] == "missing":
            messages.append("is required")
        elif isinstance(cause, OptionsError):
            messages.extend(cause.problems)
        elif cause is not None:
            messages.append(str(cause))
        elif problem["type"] in ("model_type", "dataclass_type"):
            messages.append("must be a mapping")
        elif messages:  # another member of the same union
            messages[-1] += f", or: {problem['msg']}"
        else:
            messages.append(f"{problem['msg']} (it is {problem['input']!r})")
    for where, messages in found.items():
        yield from (f"{where}: {one}{line_of.get(where, '')}" if where else one for one in messages)


def _nearest_line(place: Place, lines: Mapping[Place, int]) -> int | None:
    """Where a value stands, or the nearest section around it that the file has."""
    found = (lines[place[:depth]] for depth in range(len(place), 0, -1) if place[:depth] in lines)
    return next(found, None)


def _place(location: tuple[int | str, ...], values: Any) -> tuple[Place, type]:
    """A location in the file's own keys, without pydantic's names for members of a union, and the section it is in."""
    section: Any = Config
    inside: type = Config
    names: list[str | int] = []
    for part in location:
        keys = values if isinstance(values, dict) else range(len(values)) if isinstance(values, list) else ()
        if isinstance(part, int) or section is not None or part in keys:
            names.append(part)
        if isinstance(part, str) and section is not None:
            inside, section = section, section_in(section, part)
        if part in keys:
            values = values[part]
    return tuple(names), inside
