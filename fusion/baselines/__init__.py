"""Other ways to keep many experts of one base, behind one small interface: condu's modes are compared with them.

A baseline reads the base and the experts tensor by tensor, keeps on a `Shelf` what it would store (for all tasks
together, or for each), and rebuilds single tensors of a model from that. So its bytes are counted on what it really
keeps, and its accuracy is measured on what it really rebuilds. Nothing is published: no store, no versions, no Ray.

BatchNorm statistics and other buffers (`fusion.tensors.is_fused`) are never merged: a model for all tasks has the
base's, a model per task has its expert's, which are counted if they differ from the base's.

Suffixes: N elements of one tensor.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import torch

from fusion.baselines.shelf import Shelf
from fusion.errors import ConfigError
from fusion.task_vectors import ExpertVector, check_finite
from fusion.tensors import TensorFile, check_same_layout

Experts = Mapping[str, TensorFile]
"""Task names to experts' full state dicts, in fused order."""


class Baseline(Protocol):
    """One method.

    Attributes:
        name: its name on the command line and in `open_baseline`.
        one_model: True: one model answers for all tasks. False: every task has its own, so the task must be known.
    """

    name: ClassVar[str]
    one_model: ClassVar[bool]

    @property
    def title(self) -> str:
        """Its title in tables, with its settings."""
        ...

    def fuse(self, base: TensorFile, experts: Experts, shelf: Shelf) -> None:
        """Read the experts (one or more, with the base's layout), and keep on the shelf what the method stores."""
        ...

    def rebuild(self, base: TensorFile, shelf: Shelf, name: str, task: str) -> np.ndarray:
        """One tensor of the weights that answer for a task: float32 [N], flat."""
        ...


class OneModel:
    """Base class of the methods that store one merged model in place of the base: `model/NAME`, float32."""

    one_model: ClassVar[bool] = True

    def rebuild(self, base: TensorFile, shelf: Shelf, name: str, task: str) -> np.ndarray:
        return shelf.get(f"model/{name}")

    @staticmethod
    def put_model(base: TensorFile, shelf: Shelf, merged: Iterable[tuple[str, np.ndarray]]) -> None:
        """Keep theta_0 + delta for each pair of a name and delta [N]."""
        for name, delta_N in merged:
            shelf.put(f"model/{name}", base.float32(name).reshape(-1) + delta_N)


@dataclass(frozen=True)
class FusedBaseline:
    """The result of running a baseline on some experts. It reads the shelf, so the shelf's folder must outlive it."""

    method: Baseline
    base: TensorFile
    shelf: Shelf

    def tensors(self, task: str) -> Iterator[tuple[str, torch.Tensor]]:
        """The weights that answer for a task, tensor by tensor: fused ones in float32, buffers as they are."""
        owner = None if self.method.one_model else task
        for name in self.base.buffer_names():
            key = f"buffer/{name}"
            yield name, self.shelf.tensor(key, task=owner) if (key, owner) in self.shelf else self.base.tensor(name)
        for name in self.base.fused_names():
            weights_N = self.method.rebuild(self.base, self.shelf, name, task)
            yield name, torch.from_numpy(weights_N).reshape(self.base.specs[name].shape)


def fuse_baseline(method: Baseline, base: TensorFile, experts: Experts, folder: Path) -> FusedBaseline:
    """Run a method on experts, and keep what it stores in `folder`.

    Raises:
        ConfigError: there are no experts.
        StateDictError: an expert does not match the base, or its task vector is needed and not finite.
    """
    if not experts:
        raise ConfigError(f"{method.name}: there are no experts to work with")
    for expert in experts.values():
        check_same_layout(base, expert)
    shelf = Shelf(folder)
    method.fuse(base, experts, shelf)
    for name in base.buffer_names():
        if method.one_model:
            shelf.put(f"buffer/{name}", base.tensor(name))
            continue
        for task, expert in experts.items():
            if not torch.equal(expert.tensor(name), base.tensor(name)):
                shelf.put(f"buffer/{name}", expert.tensor(name), task=task)
    return FusedBaseline(method, base, shelf)


def task_vector(base: TensorFile, expert: TensorFile, name: str) -> np.ndarray:
    """One whole tensor of delta = theta_i - theta_0, float32 [N]. Raises `StateDictError` on NaN or infinity."""
    delta_N = (expert.float32(name) - base.float32(name)).reshape(-1)
    if not np.isfinite(delta_N).all():
        check_finite(delta_N, ExpertVector(base, expert), name)  # raises the same error as every fusion
    return delta_N


def task_vectors(base: TensorFile, experts: Experts, name: str) -> list[np.ndarray]:
    """One tensor of every task vector, float32 [N] each, in fused order. Raises `StateDictError` on NaN or infinity."""
    return [task_vector(base, expert, name) for expert in experts.values()]


def open_baseline(name: str, **settings: Any) -> Baseline:
    """The baseline with a given name, with its settings. Not AdaMerging, which needs images: create it directly.

    Raises: ConfigError for an unknown name or a setting out of range.
    """
    from fusion.baselines.average import Average
    from fusion.baselines.bitdelta import BitDelta
    from fusion.baselines.checkpoints import Checkpoints
    from fusion.baselines.emr import Emr
    from fusion.baselines.low_rank import LowRank
    from fusion.baselines.mixed_precision import MixedPrecision
    from fusion.baselines.task_arithmetic import TaskArithmetic
    from fusion.baselines.ties import Ties
    from fusion.baselines.wise_ft import WiseFt

    methods: tuple[Any, ...] = (
        Checkpoints,
        Average,
        TaskArithmetic,
        Ties,
        WiseFt,
        Emr,
        BitDelta,
        LowRank,
        MixedPrecision,
    )
    for method in methods:
        if method.name == name:
            opened: Baseline = method(**settings)
            return opened
    raise ConfigError(f"baseline {name!r} is unknown: choose from {', '.join(method.name for method in methods)}")
