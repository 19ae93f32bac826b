"""The fusion actor's options, apart from the mode. Not in the actor's file: reading them must not import Ray."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge

from fusion.kernels import StateDtype
from fusion.options import Options


@dataclass(frozen=True)
class FusionOptions(Options):
    """What is kept of the experts, and where the arithmetic is done. Raises `OptionsError`."""

    publish: Literal["each", "batch"] = "each"
    """`each`: a version per expert. `batch`: experts that became ready while the last version was made are fused into
    one, up to 16 at a time and in the configured order: the same triggers, fewer versions. For hundreds of tasks."""
    archive_experts: bool = False
    """Keep each original task vector, named by the task's record. Always on in a mode that reads them again.
    `condu fuse --from-archive` needs it."""
    archive_dtype: StateDtype = "float32"
    """What is archived. `float32`: the expert's file, one checkpoint per task. `float16` or `bfloat16`: its task vector
    in 16 bits, half the size."""
    num_cpus: Annotated[float, Ge(0)] | Literal["auto"] = "auto"
    """Cores that the fusion actor reserves, and the threads it computes with. 0: it reserves none and computes with one
    thread beside the lanes. `auto`: 1 on a cluster of more than two cores if the lanes still fit and a lane's
    cores are free as well, else 0."""
    device: Literal["cpu", "cuda"] = "cpu"
    """`cuda`: the fusion actor computes on a GPU. Needs `num_gpus`."""
    num_gpus: Annotated[float, Ge(0)] = 0.0
    """GPUs, or the share of one, that it reserves. Needs `device: cuda`."""

    def contradictions(self) -> list[str]:
        if (self.device == "cuda") == (self.num_gpus > 0):
            return []
        return [
            f"device: {self.device} with num_gpus: {self.num_gpus:g}: fusing on a GPU needs both device: cuda and "
            "num_gpus above 0"
        ]
