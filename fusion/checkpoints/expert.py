"""An expert as people have it, made into what is fused: a full state dict under the base's names.

A file that has that form already is used as it is. Anything else is written once, tensor by tensor, as a temporary
file beside the store's own: one tensor at a time is in memory, and what the expert does not have is the base's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fusion.checkpoints.adapters import Adapter, open_adapter
from fusion.checkpoints.files import Checkpoint, adapter_folder, open_checkpoint
from fusion.checkpoints.pieces import Piece, Replaced, changed_values
from fusion.checkpoints.placed import Placed
from fusion.checkpoints.placement import Naming, is_spare
from fusion.store import Store
from fusion.store.blobs import scratch_file
from fusion.tensors import TensorFile, TensorSpec, TensorWriter, is_fused

_SAID_DTYPES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}


@dataclass(frozen=True)
class ExpertFile:
    """An expert ready to be fused.

    Attributes:
        path: a safetensors file with the base's names and shapes; temporary if `note` is not None.
        label: the file as the user named it, for messages.
        note: what was read and renamed, in one line; None: nothing was.
    """

    path: Path
    label: str
    note: str | None = None


@contextmanager
def open_expert(path: Path, base: TensorFile, store: Store) -> Iterator[ExpertFile]:
    """An expert from a state dict or an adapter in any of the forms of docs/experts.md, while the block runs.

    Args:
        path: a safetensors file, the index of a sharded one, or a folder with either or with a PEFT adapter.
        base: theta_0.
        store: gives the folder for a temporary file, which is as large as the base in float32.
    Raises:
        StateDictError: unreadable, a pickle, not of this base, or an adapter that can't be merged exactly.
    """
    folder = adapter_folder(path)
    if folder is not None:
        changes = _of_adapter(open_adapter(folder), base)
    else:
        checkpoint = open_checkpoint(path)
        if checkpoint.num_files == 1 and _is_as_the_base(checkpoint, base):
            file = next(iter(checkpoint.files.values()))
            yield ExpertFile(file.path, checkpoint.label)
            return
        changes = _of_checkpoint(checkpoint, base)
    with scratch_file(store) as temporary:
        changes.write(base, temporary)
        yield ExpertFile(temporary, changes.label, changes.note)


@dataclass(frozen=True)
class _Changes:
    """What becomes of the base's tensors; those without a piece stay."""

    label: str
    pieces: dict[str, list[Piece]]
    note: str

    def write(self, base: TensorFile, path: Path) -> None:
        """The changed base as a file. Floats that change are float32, whatever dtype either side has."""
        writer = TensorWriter(path, {name: self._spec(base, name) for name in base.specs})
        try:
            for name, spec in base.specs.items():
                pieces = self.pieces.get(name)
                if not pieces:
                    writer.write(name, base.array(name))
                elif is_fused(name, spec):
                    writer.write(name, changed_values(base, name, pieces))
                else:
                    (kept,) = pieces
                    assert isinstance(kept, Replaced), "products are added to matrices"
                    writer.write(name, kept.weights.array(kept.name))
            writer.finish()
        finally:
            writer.close()

    def _spec(self, base: TensorFile, name: str) -> TensorSpec:
        spec, pieces = base.specs[name], self.pieces.get(name)
        if not pieces:
            return spec
        if is_fused(name, spec):
            return TensorSpec("F32", spec.shape)
        (kept,) = pieces
        assert isinstance(kept, Replaced), "products are added to matrices"
        return kept.weights.specs[kept.name]


def _is_as_the_base(checkpoint: Checkpoint, base: TensorFile) -> bool:
    def layout(specs: dict[str, TensorSpec]) -> dict[str, tuple[tuple[int, ...], bool]]:
        return {name: (spec.shape, is_fused(name, spec)) for name, spec in specs.items()}

    return layout(checkpoint.specs) == layout(base.specs)


def _of_checkpoint(checkpoint: Checkpoint, base: TensorFile) -> _Changes:
    """The changes that a state dict makes. Raises `StateDictError` if it has no or another place in the base."""
    naming = Naming(checkpoint.specs, base.specs)
    placed = Placed(checkpoint.label, base)
    spare: Counter[str] = Counter()
    for name, spec in checkpoint.specs.items():
        place = naming.place(name)
        if is_spare(name, place, spec, base.specs):
            spare[name.rpartition(".")[2]] += 1
        else:
            placed.replace(checkpoint, name, place)
    kept = placed.fill_gaps(hugging_face=naming.hugging_face)
    placed.check()
    return _Changes(checkpoint.label, placed.pieces, _note(checkpoint, naming, spare, kept))


def _of_adapter(adapter: Adapter, base: TensorFile) -> _Changes:
    """The changes that an adapter makes."""
    matrices = {product: f"{product.module}.weight" for product in adapter.products}
    naming = Naming([*matrices.values(), *adapter.whole], base.specs)
    placed = Placed(adapter.label, base)
    for product, name in matrices.items():
        place = naming.place(name)
        if place is None or place.name not in base:  # torch's attention has one matrix for all three
            place = naming.place(f"{product.module}.in_proj_weight")
        placed.add(adapter.weights, product, place)
    for name, own in adapter.whole.items():
        placed.replace(adapter.weights, own, naming.place(name))
    placed.check()
    scales = sorted({product.scale for product in adapter.products})
    ranks = sorted({adapter.weights.specs[product.down].shape[0] for product in adapter.products})
    count = len(placed.pieces)
    said = f"a LoRA adapter merged into {count} tensor{'' if count == 1 else 's'} of the base"
    if adapter.products:
        said += f" (rank {_listed(ranks)}, scale {_listed(scales)})"
    return _Changes(adapter.label, placed.pieces, f"{said}; {_whose(naming)} names{_without(naming)}")


def _note(checkpoint: Checkpoint, naming: Naming, spare: Counter[str], kept: Iterable[str]) -> str:
    """What was read, renamed, left out and taken from the base."""
    dtypes = sorted({spec.dtype for spec in checkpoint.specs.values()} & _SAID_DTYPES.keys())
    parts = [f"{_whose(naming)} names{_without(naming)}", *(_SAID_DTYPES[dtype] for dtype in dtypes)]
    if checkpoint.num_files > 1:
        parts.append(f"{checkpoint.num_files} shards")
    if spare:
        parts.append(f"left out {', '.join(sorted(spare))}")
    if kept := list(kept):
        parts.append(f"the base's {', '.join(kept)} stay{'s' if len(kept) == 1 else ''}")
    return "; ".join(parts)


def _whose(naming: Naming) -> str:
    return "Hugging Face" if naming.hugging_face else "open_clip"


def _without(naming: Naming) -> str:
    return f" without {' and '.join(sorted(naming.wrappers))}" if naming.wrappers else ""


def _listed(values: Iterable[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)
