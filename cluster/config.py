"""The configuration file: YAML, read into frozen models at the edge. Unknown keys are errors that name the right one.

Paths in it are relative to the file itself, so that a configuration means the same from every folder.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from fusion.errors import ConduError, ConfigError
from fusion.modes import open_mode
from fusion.store import S3Options
from fusion.store.address import StoreAddress
from fusion.versions.manifest import check_task_name
from training.recipe import Recipe
from training.sources import absolute_source


class Section(BaseModel):
    """A part of the configuration: immutable, and a typo is an error, not a default."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class S3Config(Section):
    """How to reach S3 where boto3's own environment does not say it already. Credentials never stand here."""

    region: str | None = None
    endpoint_url: str | None = None
    addressing_style: Literal["auto", "path", "virtual"] | None = None
    server_side_encryption: str | None = None
    sse_kms_key_id: str | None = None
    ca_bundle: str | None = None
    connect_timeout_s: float = 5.0
    read_timeout_s: float = 60.0
    max_attempts: int = 5
    checksum: Literal["when_supported", "when_required"] | None = None

    def options(self) -> S3Options:
        return S3Options(**self.model_dump())


class BaseConfig(Section):
    """The pre-trained CLIP."""

    architecture: str
    """An open_clip name, such as `ViT-B-16`, or a JSON file in open_clip's layout (`model_cfg`, `preprocess_cfg`)."""
    weights: str
    """A local .safetensors file, an open_clip tag such as `openai`, or `hf-hub:…`."""


class RecipeConfig(Section):
    """Settings of the fine-tuning that a task may override; None: `train`'s, else the paper's."""

    steps: int | None = None
    batch_size: int | None = None
    lr: float | None = None
    warmup_steps: int | None = None
    betas: tuple[float, float] | None = None
    eps: float | None = None
    weight_decay: float | None = None
    label_smoothing: float | None = None
    clip_grad: float | None = None
    precision: Literal["fp32", "bf16"] | None = None
    augment: Literal["none", "crop", "draw"] | None = None
    flip: bool | None = None
    method: Literal["full"] | None = None
    few_shot: int | None = None
    train_templates: Literal["first", "all"] | None = None
    balanced: bool | None = None
    save_every_steps: int | None = None

    def overrides(self) -> dict[str, Any]:
        """What is set here, under the recipe's names."""
        values = {name: getattr(self, name) for name in RecipeConfig.model_fields}
        values["templates"] = values.pop("train_templates")
        return {name: value for name, value in values.items() if value is not None}


class TaskConfig(RecipeConfig):
    """One task. Its name is its only key."""

    name: str
    data: str
    """A folder, `s3://…`, or `torchvision:NAME`."""
    classes: tuple[str, ...] | None = None
    templates: tuple[str, ...] | None = None
    """Prompt templates in place of the data's."""

    @field_validator("name")
    @classmethod
    def _name(cls, name: str) -> str:
        return check_task_name(name)


class UnseenConfig(Section):
    """Test images of a task that is never trained: they show what becomes of zero-shot."""

    name: str
    data: str

    @field_validator("name")
    @classmethod
    def _name(cls, name: str) -> str:
        return check_task_name(name)


class TrainConfig(RecipeConfig):
    """Where and how tasks are fine-tuned."""

    lanes: int | Literal["auto"] = "auto"
    """How many tasks train at once; auto: as many as the cluster holds."""
    workers: int = Field(default=1, ge=1)
    """Workers of a lane (data parallel)."""
    num_cpus: float = Field(default=1.0, gt=0)
    """Cores of a worker."""
    num_gpus: float = Field(default=0.0, ge=0)
    """GPUs of a worker; fractions share one."""
    accelerator_type: str | None = None
    labels: dict[str, str] | None = None
    """Only on nodes with these labels."""
    autoscaling: bool = False
    """The cluster grows on demand: let a lane wait for nodes that are not there yet."""
    startup_timeout_s: float = Field(default=600.0, gt=0)
    """How long the first lane may wait for its resources."""
    max_attempts: int = Field(default=3, ge=1)
    """How often a task is started before it counts as failed."""


class FusionConfig(Section):
    """How experts become one unified model plus triggers."""

    mode: Literal["iterative", "joint", "signed"] = "signed"
    bits: int | None = Field(default=None, ge=1, le=4)
    """Bits a parameter and task, `signed` only. Default 2."""
    scales: Literal["task", "tensor", "row"] | None = None
    """One scale a task (the paper's, and the default), tensor or row; `iterative` and `joint` only."""
    dtype: Literal["float32", "float16", "bfloat16"] | None = None
    """What tau is kept in, `iterative` and `joint` only. Default float32; 16 bits halve it, at a rounding error."""
    archive_experts: bool = False
    """Let a version name every expert's file, which `joint` reads again (and always does). A checkpoint a task."""
    archive_dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """What is archived: the expert's file, or its task vector in 16 bits, half the size."""
    num_cpus: Annotated[float, Field(ge=0)] | Literal["auto"] = "auto"
    """Cores that the fusion actor reserves, and threads it computes with; 0: none, and one thread beside the lanes.
    `auto`: one on a cluster of more than two cores, if the lanes fit beside it."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where the fusion actor does its arithmetic."""
    num_gpus: float = Field(default=0.0, ge=0)
    """GPU share that it reserves, with `device: cuda`."""

    @model_validator(mode="after")
    def _no_setting_without_effect(self) -> FusionConfig:
        if self.bits is not None and self.mode != "signed":
            raise ValueError(
                f"bits: {self.bits} has no effect in mode '{self.mode}': only 'signed' has more than one bit"
            )
        if (self.device == "cuda") != (self.num_gpus > 0):
            raise ValueError(
                f"device: {self.device} with num_gpus: {self.num_gpus:g}: fusing on a GPU takes both, device: cuda "
                "and num_gpus above 0"
            )
        for name in ("scales", "dtype"):
            if getattr(self, name) is not None and self.mode == "signed":
                raise ValueError(
                    f"{name}: {getattr(self, name)} has no effect in mode 'signed', only in 'iterative' and 'joint'"
                )
        return self

    def settings(self) -> dict[str, Any]:
        """As a manifest records them."""
        chosen = {name: getattr(self, name) for name in ("bits", "scales", "dtype")}
        return open_mode({"name": self.mode, **{k: v for k, v in chosen.items() if v is not None}}).settings()


class PredictConfig(Section):
    top_k: int = Field(default=4, ge=1)
    """Experts consulted for an image of no named task."""


class ReplicasConfig(Section):
    min: int = Field(default=1, ge=1)
    max: int = Field(default=1, ge=1)

    @model_validator(mode="after")
    def _ordered(self) -> ReplicasConfig:
        if self.max < self.min:
            raise ValueError(f"max: {self.max} is below min: {self.min}")
        return self


class ServeConfig(Section):
    """The service."""

    replicas: ReplicasConfig = ReplicasConfig()
    num_cpus: float = Field(default=1.0, gt=0)
    num_gpus: float = Field(default=0.0, ge=0)
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=1, le=65535)
    cached_experts: int = Field(default=8, ge=1)
    """Rebuilt experts that a replica keeps in memory. With fewer than are in use, each request rebuilds some."""
    max_batch_size: int = Field(default=16, ge=1)
    batch_wait_s: float = Field(default=0.01, ge=0)
    poll_s: float = Field(default=2.0, gt=0)
    """How often replicas look for a new version."""
    request_timeout_s: float = Field(default=30.0, gt=0)
    max_queued_requests: int = Field(default=64, ge=1)


class RayConfig(Section):
    address: str = "local"
    """`local` starts Ray on this machine, ports on loopback; `auto` or an address joins a cluster."""
    num_cpus: int | None = Field(default=None, ge=1)
    """Cores that a local Ray counts with; None: the machine's."""


class Config(Section):
    """A whole configuration. `load_config` reads one."""

    store: str
    base: BaseConfig
    tasks: tuple[TaskConfig, ...] = ()
    """Fused in this order."""
    unseen: tuple[UnseenConfig, ...] = ()
    train: TrainConfig = TrainConfig()
    fusion: FusionConfig = FusionConfig()
    predict: PredictConfig = PredictConfig()
    serve: ServeConfig = ServeConfig()
    ray: RayConfig = RayConfig()
    s3: S3Config = S3Config()
    seed: int = 0
    cache: Path | None = None
    """Folder of the node cache; None: the user's cache folder."""

    @model_validator(mode="after")
    def _names_differ(self) -> Config:
        names = [task.name for task in self.tasks] + [task.name for task in self.unseen]
        if doubled := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"task name {doubled[0]!r} stands twice: a name is a task's only key")
        return self

    @property
    def address(self) -> StoreAddress:
        """Of the store."""
        return StoreAddress(self.store, self.s3.options(), self.cache)

    def recipe(self, task: TaskConfig) -> Recipe:
        """A task's recipe: its own settings, else `train`'s, else the paper's."""
        return Recipe(**{**self.train.overrides(), **task.overrides()})


def load_config(path: Path) -> Config:
    """Read and check a configuration. Raises `ConfigError` with all mistakes at once."""
    try:
        values = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} can't be read: {error}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} has to be a mapping with the keys store, base and tasks")
    return parse_config(values, folder=path.parent, where=str(path))


def parse_config(values: dict[str, Any], *, folder: Path, where: str) -> Config:
    """Check a configuration that is in memory; relative paths are made absolute against `folder`."""
    try:
        config = Config.model_validate(values)
        config = _with_absolute_paths(config, folder.resolve())
        for task in config.tasks:
            config.recipe(task)
    except ValidationError as error:
        lines = "\n".join(f"  {_describe(problem)}" for problem in error.errors())
        raise ConfigError(f"{where} can't be used:\n{lines}") from error
    except ConduError as error:
        raise ConfigError(f"{where} can't be used: {error}") from error
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


def _describe(problem: Any) -> str:
    """One mistake in one line: where, what, and the nearest right key."""
    where = ".".join(str(part) for part in problem["loc"]) or "configuration"
    if problem["type"] == "extra_forbidden":
        key = str(problem["loc"][-1])
        near = difflib.get_close_matches(key, _keys_at(problem["loc"][:-1]), n=1, cutoff=0.5)
        return f"{where}: unknown key" + (f"; did you mean {near[0]!r}?" if near else "")
    if problem["type"] == "missing":
        return f"{where}: is required"
    message = problem["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    given = "" if isinstance(problem.get("input"), dict | list) else f" (it is {problem.get('input')!r})"
    return f"{where}: {message}{given if problem['type'] != 'value_error' else ''}"


def _keys_at(location: tuple[Any, ...]) -> list[str]:
    """Keys of the section at a location, whatever sections are nested in it."""
    model: Any = Config
    for part in location:
        if isinstance(part, int):
            continue
        annotation = model.model_fields[part].annotation if part in model.model_fields else None
        arguments = getattr(annotation, "__args__", (annotation,))
        nested = [a for a in arguments if isinstance(a, type) and issubclass(a, Section)]
        if not nested:
            return []
        model = nested[0]
    return list(model.model_fields)
