"""Archives: original task vectors, kept so that a state can be unified again in another way.

In float32 the archive is the expert's own file. In float16 or bfloat16 it is a blob of the differences from the base:
half a checkpoint, at the cost of a rounding error that is measured while it is written.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fusion.chunks import Chunk
from fusion.kernels import StateDtype
from fusion.modes.masked import specs_in, stored
from fusion.modes.workbench import Workbench, copy_buffers
from fusion.store.blobs import BlobRef
from fusion.task_vectors import DELTA, TaskVector, check_finite
from fusion.versions.experts import expert_identity, put_expert_file


def archive_expert(
    bench: Workbench, vector: TaskVector, weights: BlobRef | Path, sha256: str, *, base_sha256: str, dtype: StateDtype
) -> BlobRef:
    """Keep an expert permanently. Returns the reference for its record's `archive`.

    Args:
        vector: the task vector of these weights.
        weights: the expert's file, in the store already or local.
        sha256: of that file.
        dtype: `float32` keeps the file, the others its differences from the base.
    """
    if dtype != "float32":
        return _write_differences(bench, vector, dtype)
    if isinstance(weights, BlobRef):
        return weights
    identity = expert_identity(base=base_sha256, data="", recipe={"imported": sha256}, seed=0)
    return put_expert_file(bench.cache.store, identity, weights)


def _write_differences(bench: Workbench, vector: TaskVector, dtype: StateDtype) -> BlobRef:
    from fusion.kernels.compiled import round_in_place
    from fusion.kernels.cpu import ROUNDING

    layout = {DELTA + name: spec for name, spec in specs_in(bench, dtype).items()}
    with bench.blobs(layout | dict(vector.changed_buffers())) as (blob,):

        def work(chunk: Chunk) -> np.ndarray:
            delta_N = vector.delta(chunk, bench.buffers)
            exact_N = delta_N.astype(np.float64)
            check_finite(exact_N, vector, chunk.name)
            round_in_place(delta_N, ROUNDING[dtype])
            blob.write(DELTA + chunk.name, stored(delta_N, dtype), start=chunk.start)
            return np.array([np.square(delta_N - exact_N).sum(), np.square(exact_N).sum()])

        squares_2 = sum(bench.map(work), np.zeros(2))
        copy_buffers(vector, blob)
    bench.note_rounding(f"archive of {vector.label}", squares_2)
    return blob.ref
