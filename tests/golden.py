"""The golden files: random task vectors and what the reference implementation made of them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open

from fusion.tensors import write_tensors

FOLDER = Path(__file__).parent / "golden"
FILES = sorted(path.stem for path in FOLDER.glob("*.safetensors"))


@dataclass(frozen=True)
class Session:
    """The reference state after a session: tau and masks by tensor name, lambda by task."""

    unified: dict[str, np.ndarray]
    masks: list[dict[str, np.ndarray]]
    rescalers: np.ndarray


class Golden:
    """One golden file."""

    def __init__(self, stem: str) -> None:
        with safe_open(str(FOLDER / f"{stem}.safetensors"), framework="np") as file:
            metadata = file.metadata()
            self.values = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        self.mode = metadata["mode"]
        self.tensors = json.loads(metadata["tensors"])
        self.num_tasks = int(metadata["tasks"])
        self.tasks = [f"task-{i}" for i in range(self.num_tasks)]

    def session(self, number: int) -> Session:
        """After session `number` (from 0); the one-shot result for mode `joint`."""
        prefix = "joint" if self.mode == "joint" else f"session/{number}"
        count = self.num_tasks if self.mode == "joint" else number + 1
        return Session(
            {name: self.values[f"{prefix}/unified/{name}"] for name in self.tensors},
            [{name: self.values[f"{prefix}/mask/{i}/{name}"] for name in self.tensors} for i in range(count)],
            self.values[f"{prefix}/rescalers"],
        )

    def delta(self, task: int) -> dict[str, np.ndarray]:
        return {name: self.values[f"delta/{task}/{name}"] for name in self.tensors}

    def write(self, folder: Path) -> tuple[Path, list[Path]]:
        """A base of zeros (so that theta - theta_0 is delta to the last bit) and one expert per task."""
        base = folder / "base.safetensors"
        write_tensors(base, {name: torch.zeros(delta.shape) for name, delta in self.delta(0).items()})
        experts = []
        for i, task in enumerate(self.tasks):
            experts.append(folder / f"{task}.safetensors")
            write_tensors(experts[-1], {name: torch.from_numpy(delta) for name, delta in self.delta(i).items()})
        return base, experts
