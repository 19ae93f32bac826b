"""Fusing in the configured order, one by one or whatever waits: the same tasks and triggers, each fused once."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from cluster.ordered_fusion import OrderedFuser
from fusion.decouple import decoupled_tensors, read_record
from fusion.errors import BlobNotFoundError, StateDictError
from fusion.fuse import ExpertToFuse, fuse_experts
from fusion.store import Store, open_store
from fusion.tensors import write_tensors
from fusion.versions.bases import Base
from fusion.versions.experts import ExpertRecord, find_expert, put_expert, put_expert_file
from fusion.versions.history import Versions
from tests.fusion.test_fuse import MODES
from tests.fusion.vectors import cache_of, random_base, random_expert
from training.lanes.task_queue import TaskStatus

SIGNED = {"name": "signed", "bits": 2}
NAMES = [f"t{i}" for i in range(5)]


class Here:
    """In place of the fusion actor's client: fuses in this process, after `go`. `calls` are the tasks of each call."""

    def __init__(self, store: Store, folder: Path) -> None:
        self.calls: list[list[str]] = []
        self.go = threading.Event()
        self._store, self._folder = store, folder

    def fuse(self, base: Base, experts: Sequence[ExpertToFuse], **options: Any) -> int:
        self.go.wait(30)
        self.calls.append([expert.task for expert in experts])
        return fuse_experts(cache_of(self._store, self._folder), base, experts, **options).manifest.version


class Site:
    """A store with trained experts, and what fuses them."""

    def __init__(self, folder: Path, *, batch: bool, mode: Any = SIGNED, bad: str = "") -> None:
        folder.mkdir()
        self.folder, self.store = folder, open_store((folder / "store").as_uri())
        self.base, path = random_base(folder, self.store)
        self.statuses = [self._trained(name, i, path, bad=name == bad) for i, name in enumerate(NAMES)]
        self.client = Here(self.store, folder)
        self.noted: dict[str, int] = {}
        self.fuser = OrderedFuser(
            self.client, self.store, self.base, {"mode": mode}, self.noted.__setitem__, batch=batch  # type: ignore[arg-type]
        )  # fmt: skip

    def run(self) -> dict[str, int]:
        """The first is ready at once, the others while it is fused."""
        self.fuser.update(self.statuses[:1])
        while self.fuser._waiting:
            continue
        self.fuser.update(self.statuses)
        self.client.go.set()
        return self.fuser.finish()

    def held(self) -> list[list[str]]:
        versions = Versions(self.store)
        return [list(versions.read(number).state.tasks) for number in versions.all_numbers()]

    def _trained(self, name: str, seed: int, base: Path, *, bad: bool) -> TaskStatus:
        weights = random_expert(self.folder, base, name, seed=seed).weights
        assert isinstance(weights, Path)
        if bad:
            import torch

            write_tensors(weights, {"another.model": torch.zeros(3)})
        identity = f"{seed}" * 64
        ref = put_expert_file(self.store, identity, weights)
        record = ExpertRecord(identity, name, ("a", "b"), ("a {}",), self.base.sha256, ref)
        put_expert(self.store, record)
        return TaskStatus(name, identity, "done")


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_a_batch_ends_in_what_one_by_one_ends_in(mode: Any, tmp_path: Path) -> None:
    each, batch = (Site(tmp_path / str(batch), batch=batch, mode=mode) for batch in (False, True))
    each.run()
    batch.run()
    assert each.held() == [NAMES[: t + 1] for t in range(5)]
    assert batch.held() == [NAMES[:1], NAMES]
    one, other = (Versions(site.store).newest() for site in (each, batch))
    assert one is not None
    assert other is not None
    assert list(one.state.tasks) == list(other.state.tasks)
    for name in NAMES:
        found = []
        for site, manifest in ((each, one), (batch, other)):
            cache = cache_of(site.store, site.folder)
            record = read_record(cache, manifest, name)
            found.append((record.expert_sha256, record.classes, dict(decoupled_tensors(cache, manifest, name))))
        assert found[0][:2] == found[1][:2]
        assert found[0][2].keys() == found[1][2].keys()
        assert all((tensor == found[1][2][key]).all() for key, tensor in found[0][2].items()), "the same bits"


def test_every_task_is_told_its_version(tmp_path: Path) -> None:
    site = Site(tmp_path / "site", batch=True)
    assert site.run() == site.noted == {"t0": 1, **dict.fromkeys(NAMES[1:], 2)}
    assert site.client.calls == [NAMES[:1], NAMES[1:]]


def test_a_task_waits_for_those_before_it(tmp_path: Path) -> None:
    site = Site(tmp_path / "site", batch=True)
    site.client.go.set()
    waiting = TaskStatus("t1", site.statuses[1].identity, "training")
    site.fuser.update([site.statuses[0], waiting, *site.statuses[2:]])
    assert site.fuser.finish() == {"t0": 1}


def test_an_expert_that_cannot_be_fused_stops_those_after_it_alone(tmp_path: Path) -> None:
    site = Site(tmp_path / "site", batch=True, bad="t3")
    with pytest.raises(StateDictError):
        site.run()
    assert site.held()[-1] == NAMES[:3]


def test_weights_that_are_gone_stop_those_after_them_alone(tmp_path: Path) -> None:
    site = Site(tmp_path / "site", batch=True)
    record = find_expert(site.store, site.statuses[3].identity)
    assert record is not None
    site.store.delete(record.content.key)
    with pytest.raises(BlobNotFoundError, match="t3"):
        site.run()
    assert site.held()[-1] == NAMES[:3]


def test_a_batch_that_was_published_before_its_caller_heard_of_it_is_not_fused_again(tmp_path: Path) -> None:
    site = Site(tmp_path / "site", batch=True)
    site.run()
    again = OrderedFuser(
        site.client, site.store, site.base, {"mode": SIGNED}, lambda name, version: None, batch=True  # type: ignore[arg-type]
    )  # fmt: skip
    again.update(site.statuses)
    assert again.finish() == dict.fromkeys(NAMES, 2)
    assert site.client.calls == [NAMES[:1], NAMES[1:]]
    assert site.held() == [NAMES[:1], NAMES]
