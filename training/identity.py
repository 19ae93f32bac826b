"""Which expert a task, a base, a recipe and a seed make, before it exists."""

from __future__ import annotations

from fusion.versions.bases import Base
from fusion.versions.experts import expert_identity
from training.data.task_data import TaskData
from training.recipe import Recipe


def identity_of(base: Base, data: TaskData, recipe: Recipe, seed: int) -> str:
    """The identity of the expert that these four make."""
    return expert_identity(base=base.sha256, data=data.sha256, recipe=recipe.to_json(), seed=seed)
