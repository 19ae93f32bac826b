"""Tasks without an expert, in a store: published, listed, removed, rebuilt and answered beside tasks that have one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fusion.answers.evidence import measure_evidence
from fusion.answers.view import ViewLoader
from fusion.decouple import decoupled_tensors, read_record
from fusion.errors import ConfigError
from fusion.fidelity import measure_fidelity
from fusion.fuse import ExpertToFuse, fuse_experts, rebuild_from_archive
from fusion.store import Store
from fusion.store.blobs import BlobRef, new_nonce, put_file, scratch_file
from fusion.tensors import write_tensors
from fusion.versions import edits
from fusion.versions.aliases import set_aliases
from fusion.versions.history import Versions
from fusion.versions.verify import verify
from tests.fusion.vectors import SIGNED, cache_of, decoupled, random_base, random_expert

MODES = [{"name": "iterative"}, {"name": "joint"}, {"name": "lowrank"}, SIGNED]


def stored(store: Store, tensors: dict[str, torch.Tensor]) -> BlobRef:
    with scratch_file(store) as path:
        write_tensors(path, tensors)
        return put_file(store, path, nonce=new_nonce())


def head(store: Store, task: str) -> ExpertToFuse:
    features = torch.nn.functional.normalize(torch.randn(20, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    evidence = stored(store, measure_evidence(features, torch.arange(20) % 2, 2).tensors())
    prototypes = stored(store, {"prototypes": features[:2]})
    return ExpertToFuse(task, None, ("x", "y"), ("{}.",), prototypes, evidence, {"x": ("ex",)})


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_a_head_changes_no_expert_and_takes_its_place_among_the_tasks(
    mode: dict[str, Any], local_store: Store, tmp_path: Path
) -> None:
    base, path = random_base(tmp_path, local_store)
    cache = cache_of(local_store, tmp_path)
    one, two = (random_expert(tmp_path, path, name, seed=seed) for seed, name in enumerate(("one", "two")))
    fuse_experts(cache, base, [one], mode=mode, archive=True)
    without = fuse_experts(cache, base, [two], mode=mode, archive=True).manifest
    edits.rollback(Versions(local_store), 1)
    result = fuse_experts(cache, base, [head(local_store, "flat"), two], mode=mode, archive=True)
    assert result.fused == ("flat", "two")
    state = result.manifest.state
    assert list(state.tasks) == ["one", "flat", "two"]
    assert [entry.session for entry in state.tasks.values()] == [1, 0, 2]
    for name in ("one", "two"):
        assert decoupled(local_store, tmp_path, result.manifest, name) == decoupled(
            local_store, tmp_path, without, name
        )
    with pytest.raises(ConfigError, match="task 'flat' has no expert to rebuild"):
        list(decoupled_tensors(cache, result.manifest, "flat"))
    assert [task.task for task in measure_fidelity(cache, result.manifest).tasks] == ["one", "two"]
    assert verify(Versions(cache.store)).findings == ()
    assert fuse_experts(cache, base, [head(local_store, "flat")], mode=mode).fused == (), "the same head is a no-op"
    rebuilt = rebuild_from_archive(cache, mode=mode).manifest
    assert list(rebuilt.state.tasks) == ["one", "flat", "two"]
    assert rebuilt.state.tasks["flat"] == state.tasks["flat"]
    left = edits.remove_task(Versions(local_store), "flat").manifest
    assert list(left.state.tasks) == ["one", "two"]


def test_a_store_may_hold_heads_alone_and_neither_weights_nor_evidence_is_an_error(
    local_store: Store, tmp_path: Path
) -> None:
    base, _ = random_base(tmp_path, local_store)
    cache = cache_of(local_store, tmp_path)
    manifest = fuse_experts(cache, base, [head(local_store, "flat")], mode=SIGNED).manifest
    view = ViewLoader(cache).load(manifest)
    assert not view.tasks["flat"].has_expert
    assert view.router is not None
    with pytest.raises(ConfigError, match="task 'none' has neither an expert nor evidence"):
        fuse_experts(cache, base, [ExpertToFuse("none", None)], mode=SIGNED)


def test_aliases_change_in_a_version_of_their_own_and_only_if_they_differ(local_store: Store, tmp_path: Path) -> None:
    base, _ = random_base(tmp_path, local_store)
    cache = cache_of(local_store, tmp_path)
    first = fuse_experts(cache, base, [head(local_store, "flat")], mode=SIGNED).manifest
    assert read_record(cache, first, "flat").aliases == {"x": ("ex",)}
    assert set_aliases(Versions(local_store), "flat", {"x": ["ex"]}) == first
    second = set_aliases(Versions(local_store), "flat", {"y": ["why", "wye"]})
    assert second.version == 2
    assert read_record(cache, second, "flat").aliases == {"y": ("why", "wye")}
    assert ViewLoader(cache).load(second).tasks["flat"].meanings == {"x": "x", "y": "y", "why": "y", "wye": "y"}
