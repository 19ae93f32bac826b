"""What the fusion actor is told once, beside the mode. Apart from the actor, so that reading it imports no Ray."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge

from fusion.kernels import StateDtype
from fusion.options import Options


@dataclass(frozen=True)
class FusionOptions(Options):
    """What is kept of the experts, and where the arithmetic is done. Raises `OptionsError`."""

    archive_experts: bool = False
    """Keep each original task vector, named by its record. A mode that reads them again always does.
    `condu fuse --from-archive` needs it."""
    archive_dtype: StateDtype = "float32"
    """What is archived. `float32`: the expert's file, one checkpoint per task. `float16` or `bfloat16`: its task vector
    in 16 bits, half of it."""
    num_cpus: Annotated[float, Ge(0)] | Literal["auto"] = "auto"
    """Cores that the fusion actor reserves, and threads it computes with. 0: none, and one thread beside the lanes.
    `auto`: 1 on a cluster of more than two cores if the lanes fit beside it, else 0."""
    device: Literal["cpu", "cuda"] = "cpu"
    """`cuda`: the fusion actor computes on a GPU. Needs `num_gpus`."""
    num_gpus: Annotated[float, Ge(0)] = 0.0
    """GPU, or share of one, that it reserves. Needs `device: cuda`."""

    def contradictions(self) -> list[str]:
        if (self.device == "cuda") == (self.num_gpus > 0):
            return []
        return [
            f"device: {self.device} with num_gpus: {self.num_gpus:g}: fusing on a GPU takes both, device: cuda and "
            "num_gpus above 0"
        ]
