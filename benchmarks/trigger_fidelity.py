"""Claim: `lowrank` keeps an expert's answers in fewer bytes than any other trigger here.

Encodes the experts of a finished run in several ways and asks each decoded expert about its task's test images, by its
texts alone. Beside accuracy, which is noisy and may rise by chance, two measures of how much of the expert is kept: how
often both give the same answer, and the divergence KL(expert || decoded) of their probabilities. Bytes are those of
triggers as stored; what all tasks share comes on top. The last line is JSON.

    make demo && python -m benchmarks.trigger_fidelity demo-output/condu.yaml     # five minutes on 2 cores
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.finished_run import open_finished_run
from cluster.report.estimates import paired
from fusion.answers.clip import Clip
from fusion.baselines import fuse_baseline, open_baseline
from fusion.decouple import decoupled_tensors, read_record
from fusion.fuse import ExpertToFuse, fuse_experts
from fusion.modes import open_mode
from fusion.store import open_store
from fusion.store.node_cache import NodeCache
from fusion.tensors import TensorFile
from fusion.versions.bases import put_base
from training.data.task_data import TaskData
from training.evaluate import load_pixels, logits_with, right_in
from training.kept import Kept, kept

_MODES: list[dict[str, Any]] = [
    *({"name": "lowrank", "quality": quality} for quality in (0.7, 1.0, 1.4, 2.0)),
    {"name": "signed", "bits": 1},
    {"name": "signed", "bits": 2},
]
_BASELINES: list[tuple[str, dict[str, Any]]] = [
    *(("low-rank", {"rank": rank}) for rank in (4, 8, 16, 32)),
    *(("delta-come", {"bits": bits}) for bits in (0.5, 1.0, 2.0)),
    ("bitdelta", {}),
]
_METHODS = list(dict.fromkeys([*(one["name"] for one in _MODES), *(name for name, _ in _BASELINES)]))
Decoded = Iterable[tuple[str, torch.Tensor]]


@dataclass
class Row:
    """One way to keep the experts. By task: right answers of expert and decoded, what is kept, bytes."""

    title: str
    shared: int
    right: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)
    kept: list[Kept] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)

    def figures(self) -> dict[str, Any]:
        lost = paired(self.right)
        assert lost is not None
        return {
            "title": self.title,
            "bytes_per_task": round(float(np.mean(self.sizes))),
            "largest": max(self.sizes),
            "shared_bytes": self.shared,
            "points_lost": [round(value, 2) for value in (lost.mean, lost.low, lost.high)],
            "agreement": round(100 * float(np.mean([one.agreement for one in self.kept])), 2),
            "divergence": round(float(np.mean([one.divergence for one in self.kept])), 4),
        }


class Asked:
    """A task's test images, and what its expert says of them."""

    def __init__(self, clip: Clip, data: TaskData, expert: TensorFile) -> None:
        self.data, self.expert = data, expert
        self._clip, self._pixels = clip, load_pixels(clip, data)
        own = ((name, expert.tensor(name)) for name in expert.specs)
        self._wanted = logits_with(clip, own, self._pixels, data)

    def compare(self, row: Row, decoded: Decoded, size: int) -> None:
        found = logits_with(self._clip, decoded, self._pixels, self.data)
        row.right.append((right_in(self._wanted, self.data), right_in(found, self.data)))
        row.kept.append(kept(self._wanted, found))
        row.sizes.append(size)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--only", choices=_METHODS, nargs="+", default=_METHODS, help="which methods; default: all")
    options = parser.parse_args()
    run = open_finished_run(options.config)
    asked = {task: Asked(run.clip, run.data[task], expert) for task, expert in run.experts.items()}
    figures = []
    print(f"{'':28s} {'KB a task':>9} {'most':>7} {'shared':>9} {'points lost':>22} {'agree %':>8} {'KL':>8}")
    for row in _rows(asked, run.base, options.only):
        found = row.figures()
        figures.append(found)
        mean, low, high = found["points_lost"]
        print(
            f"{row.title:28s} {found['bytes_per_task'] / 1000:9,.0f} {found['largest'] / 1000:7,.0f} "
            f"{row.shared / 1000:9,.0f} {mean:6.2f} ({low:+.2f} to {high:+.2f}) {found['agreement']:8.2f} "
            f"{found['divergence']:8.4f}",
            flush=True,
        )
    print(json.dumps({"tasks": list(asked), "rows": figures}))


def _rows(asked: Mapping[str, Asked], base: TensorFile, only: Collection[str]) -> Iterator[Row]:
    for settings in (one for one in _MODES if one["name"] in only):
        with tempfile.TemporaryDirectory(prefix="condu-triggers-") as folder:
            yield _mode(settings, asked, base, Path(folder))
    for name, settings in (one for one in _BASELINES if one[0] in only):
        with tempfile.TemporaryDirectory(prefix="condu-triggers-") as folder:
            method = open_baseline(name, **settings)
            kept = fuse_baseline(method, base, {task: one.expert for task, one in asked.items()}, Path(folder))
            row = Row(method.title, kept.shelf.shared_bytes)
            _compare(row, asked, kept.tensors, kept.shelf.task_bytes)
            yield row


def _mode(settings: dict[str, Any], asked: Mapping[str, Asked], base: TensorFile, folder: Path) -> Row:
    store = open_store(str(folder / "store"))
    cache, mode = NodeCache(store, folder / "cache"), open_mode(settings)
    experts = [ExpertToFuse(task, one.expert.path) for task, one in asked.items()]
    manifest = fuse_experts(cache, put_base(store, base.path), experts, mode=settings).manifest
    row = Row(mode.title(), mode.shared_bytes(manifest.state))
    _compare(
        row,
        asked,
        lambda task: decoupled_tensors(cache, manifest, task),
        lambda task: mode.task_bytes(read_record(cache, manifest, task)),
    )
    return row


def _compare(
    row: Row, asked: Mapping[str, Asked], decoded: Callable[[str], Decoded], size: Callable[[str], int]
) -> None:
    for task, one in asked.items():
        one.compare(row, decoded(task), size(task))


if __name__ == "__main__":
    main()
