"""A mode is one file: the one registered here works in every command, and no line elsewhere knows of it."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from cluster.cli import main
from cluster.compare import CompareJob, CompareOptions, all_methods, compare_method, default_methods
from cluster.config import parse_config
from cluster.config_docs import modes_table
from fusion.answers.options import PredictOptions
from fusion.chunks import Chunk
from fusion.errors import ConfigError
from fusion.fuse import fuse_experts
from fusion.modes import Mode, NewExpert, Workbench, register
from fusion.modes.registry import unregister
from fusion.modes.workbench import copy_buffers
from fusion.store import Store, open_store
from fusion.store.address import StoreAddress
from fusion.store.node_cache import NodeCache
from fusion.tensors import TensorFile, TensorSpec
from fusion.versions.experts import ExpertRecord
from fusion.versions.history import Versions
from fusion.versions.state import FusedState
from tests.fusion.published import make_expert
from tests.fusion.vectors import random_base, random_expert
from tests.tiny import SHAPES, tiny_base, tiny_task
from training.lanes.task_queue import TaskJob

RULER = "ruler"


@dataclass(frozen=True)
class Rounded(Mode):
    """Task vectors rounded to a few decimal places, as integers; the tasks share the scale (the ruler)."""

    name = "rounded"
    traces = "the ruler keeps nothing"

    digits: Literal[2, 3] = 3
    """Decimal places that are kept."""

    def fuse(self, bench: Workbench, state: FusedState, new: Sequence[NewExpert]) -> FusedState:
        shared, tasks, session = dict(state.shared), dict(state.tasks), state.session
        if RULER not in shared:
            with bench.blobs({RULER: TensorSpec("F32", (1,))}) as (ruler,):
                ruler.write(RULER, np.array([10.0**self.digits], np.float32))
            shared[RULER] = ruler.ref
        for session, expert in enumerate(new, state.session + 1):
            layout = {f"whole/{name}": TensorSpec("I32", spec.shape) for name, spec in bench.specs.items()}
            with bench.blobs(layout | dict(expert.vector.changed_buffers())) as (trigger,):
                for chunk in bench.chunks:
                    delta_N = expert.vector.delta(chunk, bench.buffers)
                    whole_N = np.rint(delta_N * 10.0**self.digits).astype(np.int32)
                    trigger.write(f"whole/{chunk.name}", whole_N, start=chunk.start)
                copy_buffers(expert.vector, trigger)
            tasks[expert.task] = bench.put_record(expert, trigger.ref, 0.0, session=session, decoded_with=(RULER,))
        return FusedState(session, shared, tasks)

    def rebuild(self, bench: Workbench, experts: Sequence[NewExpert]) -> FusedState:
        return self.fuse(bench, FusedState(), experts)

    def decoder(self, bench: Workbench, state: FusedState, task: str) -> RoundedDecoder:
        entry = state.tasks[task]
        (ruler,) = entry.decoded_with
        return RoundedDecoder(bench.trigger(entry), float(bench.cache.tensors(state.shared[ruler]).read(RULER)[0]))


@dataclass(frozen=True)
class RoundedDecoder:
    trigger: TensorFile
    ruler: float

    def delta(self, chunk: Chunk) -> np.ndarray:
        whole_N: np.ndarray = self.trigger.read(f"whole/{chunk.name}", chunk.start, chunk.stop)
        return (whole_N / self.ruler).astype(np.float32)

    def bits(self, chunk: Chunk) -> tuple[int, int]:
        return 0, 0


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    register(Rounded)
    yield
    unregister(Rounded.name)


def condu(*arguments: str, code: int = 0) -> Any:
    """What a command prints as JSON."""
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out):
        patch.setattr(sys, "argv", ["condu", *arguments, "--json"])
        with pytest.raises(SystemExit) as ended:
            main()
    assert (ended.value.code or 0) == code, out.getvalue()
    return json.loads(out.getvalue()) if code == 0 else None


def test_a_registered_mode_works_in_every_command_on_a_store(local_store: Store, tmp_path: Path) -> None:
    _, base = random_base(tmp_path, local_store)
    experts = [random_expert(tmp_path, base, task, seed=seed).weights for seed, task in enumerate(("a", "b"), 1)]
    url = ["--store", str(tmp_path / "own")]
    given = [f"--expert={task}={path}" for task, path in zip("ab", experts, strict=True)]

    (fused,) = condu("fuse", *url, f"--base={base}", *given, "--mode=rounded", "--digits=2", "--archive=float32")
    assert fused["mode"] == {"name": "rounded", "digits": 2}
    condu("fuse", *url, "--mode=signed", "--digits=3", given[0], code=2)

    condu("export", *url, "--task=a", str(tmp_path / "out.safetensors"))
    exported, expert, theta = (TensorFile(Path(f)) for f in (tmp_path / "out.safetensors", experts[0], base))
    for name in theta.fused_names():
        delta = expert.float32(name) - theta.float32(name)
        np.testing.assert_allclose(exported.float32(name), theta.float32(name) + np.rint(delta * 100) / 100, atol=1e-6)

    shown = condu("versions", "show", *url)
    assert [task["task"] for task in shown["tasks"]] == ["a", "b"]
    assert shown["shared_bytes"] > 0
    assert condu("versions", "verify", *url)["findings"] == []
    condu("versions", "remove-task", "a", *url)
    assert RULER in newest(tmp_path / "own").shared, "task b is decoded with it"
    condu("versions", "remove-task", "b", *url)
    assert not newest(tmp_path / "own").shared, "no task needs it any more"
    condu("versions", "rollback", "1", *url)
    (rebuilt,) = condu("fuse", *url, "--from-archive", "--mode=rounded", "--digits=3")
    assert rebuilt["mode"] == {"name": "rounded"}, "an option at its default is not recorded"
    assert condu("versions", "gc", "--keep=1", "--keep-days=0", *url)["blobs"]
    assert condu("versions", "verify", *url)["findings"] == []


def newest(folder: Path) -> FusedState:
    manifest = Versions(open_store(str(folder))).newest()
    assert manifest is not None
    return manifest.state


def test_a_registered_mode_takes_part_in_compare(local_store: Store, tmp_path: Path) -> None:
    assert "rounded" in default_methods()
    assert "rounded" in all_methods()
    base, cache = tiny_base(local_store), NodeCache(local_store)
    expert = make_expert(local_store, cache, base, "shapes", tmp_path, seed=1)
    data = tiny_task(tmp_path / "shapes", classes=SHAPES[:2])
    assert not isinstance(expert.weights, Path)
    record = ExpertRecord(
        identity="x", task="shapes", classes=expert.classes, templates=expert.templates, base=base.sha256,
        expert=expert.weights, prototypes=expert.prototypes, metrics={},
    )  # fmt: skip
    compared = compare_method(
        CompareJob(
            method="rounded",
            address=StoreAddress(local_store.url),
            base=base,
            tasks=(TaskJob("shapes", data),),
            records=(record,),
            unseen=(),
            options=CompareOptions(),
            predict=PredictOptions(),
        )
    )
    assert compared.title == "condu rounded"
    assert compared.tasks["shapes"].size == 10
    assert compared.task_bytes["shapes"] > 0


def test_a_registered_mode_is_configured_with_its_own_options(local_store: Store, tmp_path: Path) -> None:
    def config(**fusion: Any) -> Any:
        values = {"store": "store", "base": {"architecture": "x", "weights": "y"}, "fusion": fusion}
        return parse_config(values, folder=tmp_path, where="condu.yaml").fusion

    assert config(mode="rounded", digits=2).settings() == {"name": "rounded", "digits": 2}
    with pytest.raises(ConfigError, match=r"fusion: digits is 7, it must be 2 or 3"):
        config(mode="rounded", digits=7)
    with pytest.raises(ConfigError, match=r"fusion: digits: 2 has no effect in mode 'signed': it belongs to rounded"):
        config(mode="signed", digits=2)
    with pytest.raises(ConfigError, match=r"fusion: digit: unknown key; did you mean 'digits'\?"):
        config(mode="rounded", digit=2)
    assert "| `digits` | `rounded` | `3` | Decimal places that are kept. |" in modes_table()

    base, path = random_base(tmp_path, local_store)
    fused = fuse_experts(
        NodeCache(local_store),
        base,
        [random_expert(tmp_path, path, "a", seed=1)],
        mode=config(mode="rounded").settings(),
    )
    assert fused.manifest.mode == {"name": "rounded"}
