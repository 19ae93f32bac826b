"""Other ways to keep many experts of one base, behind one small interface: what condu's modes are compared with.

A baseline reads the base and the experts tensor by tensor, keeps on a `Shelf` what it would store (for all tasks
together, or for each), and rebuilds one tensor of one model from that. So its bytes are counted on what it really kept,
and its accuracy is measured on what really came back. Nothing here publishes: no store, no versions, no Ray.

BatchNorm statistics and other buffers (`fusion.tensors.is_fused`) are never merged: a model for all tasks has the
base's, a model per task its own expert's, counted where they differ from the base's.

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
"""Task name to the expert's full state dict, in fused order."""


class Baseline(Protocol):
    """One method.

    Attributes:
        name: what a caller selects it by.
        one_model: True: one model answers for all tasks. False: every task has its own, so the task must be known.
    """

    name: ClassVar[str]
    one_model: ClassVar[bool]

    @property
    def title(self) -> str:
        """What tables call it, with its settings."""
        ...

    def fuse(self, base: TensorFile, experts: Experts, shelf: Shelf) -> None:
        """Read the experts and keep on the shelf what the method would store. At least one expert, layouts checked."""
        ...

    def rebuild(self, base: TensorFile, shelf: Shelf, name: str, task: str) -> np.ndarray:
        """One tensor of the weights that answer for a task: float32 [N], flat."""
        ...


class OneModel:
    """Base of the methods that store one merged model: `model/NAME`, float32, in place of the base."""

    one_model: ClassVar[bool] = True

    def rebuild(self, base: TensorFile, shelf: Shelf, name: str, task: str) -> np.ndarray:
        return shelf.get(f"model/{name}")

    @staticmethod
    def put_model(base: TensorFile, shelf: Shelf, merged: Iterable[tuple[str, np.ndarray]]) -> None:
        """Keep theta_0 + delta for each (name, delta [N])."""
        for name, delta_N in merged:
            shelf.put(f"model/{name}", base.float32(name).reshape(-1) + delta_N)


@dataclass(frozen=True)
class FusedBaseline:
    """What a baseline made of some experts. It reads the shelf, so it lives as long as the shelf's folder."""

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
    """Run a method over experts, keeping what it stores in `folder`.

    Raises:
        ConfigError: no experts.
        StateDictError: an expert that is no expert of this base, or whose task vector is wanted and not finite.
    """
    if not experts:
        raise ConfigError(f"{method.name}: there is no expert to work with")
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
        check_finite(delta_N, ExpertVector(base, expert), name)  # raises, in the words of every fusion
    return delta_N


def task_vectors(base: TensorFile, experts: Experts, name: str) -> list[np.ndarray]:
    """One tensor of every task vector, float32 [N] each, in fused order. Raises `StateDictError` on NaN or infinity."""
    return [task_vector(base, expert, name) for expert in experts.values()]


def open_baseline(name: str, **settings: Any) -> Baseline:
    """The baseline of a name (of `BASELINES`) with its settings. AdaMerging needs images: make it yourself.

    Raises: ConfigError for an unknown name or a setting out of range.
    """
    from fusion.baselines.average import Average
    from fusion.baselines.bitdelta import BitDelta
    from fusion.baselines.checkpoints import Checkpoints
    from fusion.baselines.emr import Emr
    from fusion.baselines.low_rank import LowRank
    from fusion.baselines.task_arithmetic import TaskArithmetic
    from fusion.baselines.ties import Ties
    from fusion.baselines.wise_ft import WiseFt

    methods: tuple[Any, ...] = (Checkpoints, Average, TaskArithmetic, Ties, WiseFt, Emr, BitDelta, LowRank)
    for method in methods:
        if method.name == name:
            opened: Baseline = method(**settings)
            return opened
    raise ConfigError(f"baseline {name!r} is unknown: take {', '.join(method.name for method in methods)}")
