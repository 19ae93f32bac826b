"""Parity with the reference implementation: masks bit for bit, tau and scales to 1e-6 relative."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fusion.decouple import decoupled_tensors, read_record
from fusion.fuse import ExpertToFuse, fuse_experts
from fusion.planes import unpack
from fusion.store import Store
from fusion.store.node_cache import NodeCache
from fusion.versions.bases import put_base
from fusion.versions.manifest import Manifest
from tests.fusion.reference import mask_now
from tests.golden import FILES, Golden, Session


def assert_version_is(cache: NodeCache, manifest: Manifest, golden: Golden, session: Session) -> None:
    """Every mask, tau, scale and decoupled task vector of a version is the reference's."""
    state = manifest.state
    unified = cache.tensors(state.shared["unified"])
    flips = cache.tensors(state.shared["last_flip"]) if "last_flip" in state.shared else None
    for name, expected in session.unified.items():
        np.testing.assert_allclose(unified.array(name), expected, rtol=1e-6, err_msg=name)
    for i, (task, entry) in enumerate(state.tasks.items()):
        trigger = cache.tensors(read_record(cache, manifest, task).trigger)
        assert entry.scale == pytest.approx(float(session.rescalers[i]), rel=1e-6)
        decoupled = dict(decoupled_tensors(cache, manifest, task))
        for name, expected in session.masks[i].items():
            plane_B = trigger.array(f"plane/0/{name}")
            if flips is None:
                mask_N = unpack(plane_B, expected.size)
            else:
                mask_N = mask_now(plane_B, flips.array(name).reshape(-1), entry.session)
            np.testing.assert_array_equal(mask_N, expected.reshape(-1) != 0, err_msg=f"{task} {name}")
            want = session.rescalers[i] * expected * session.unified[name]
            np.testing.assert_allclose(decoupled[name].numpy(), want, rtol=2e-6, atol=1e-12)


@pytest.mark.parametrize("stem", FILES)
def test_the_python_api_agrees_with_the_reference(stem: str, any_store: Store, tmp_path: Path) -> None:
    golden = Golden(stem)
    base_path, experts = golden.write(tmp_path)
    cache = NodeCache(any_store, tmp_path / "cache")
    base = put_base(any_store, base_path)
    inputs = [ExpertToFuse(task, path) for task, path in zip(golden.tasks, experts, strict=True)]
    mode = {"name": golden.mode}
    if golden.mode == "joint":
        result = fuse_experts(cache, base, inputs, mode=mode)
        assert_version_is(cache, result.manifest, golden, golden.session(0))
        return
    for i, expert in enumerate(inputs):
        result = fuse_experts(cache, base, [expert], mode=mode)
        assert_version_is(cache, result.manifest, golden, golden.session(i))


@pytest.mark.parametrize("stem", FILES)
def test_one_call_with_all_experts_ends_where_one_call_each_does(stem: str, local_store: Store, tmp_path: Path) -> None:
    golden = Golden(stem)
    base_path, experts = golden.write(tmp_path)
    cache = NodeCache(local_store, tmp_path / "cache")
    base = put_base(local_store, base_path)
    inputs = [ExpertToFuse(task, path) for task, path in zip(golden.tasks, experts, strict=True)]
    result = fuse_experts(cache, base, inputs, mode={"name": golden.mode})
    assert result.manifest.version == 1
    assert_version_is(cache, result.manifest, golden, golden.session(golden.num_tasks - 1))
    named = {ref.key for ref in result.manifest.state.blobs()}
    for task in golden.tasks:
        named.add(read_record(cache, result.manifest, task).trigger.key)
    assert {info.key for info in local_store.list("blobs/")} == named, "no blob of an intermediate session is left"


def test_joint_fused_one_by_one_ends_where_one_shot_does(local_store: Store, tmp_path: Path) -> None:
    golden = Golden("joint_t6")
    base_path, experts = golden.write(tmp_path)
    cache = NodeCache(local_store, tmp_path / "cache")
    base = put_base(local_store, base_path)
    for task, path in zip(golden.tasks, experts, strict=True):
        result = fuse_experts(cache, base, [ExpertToFuse(task, path)], mode={"name": "joint"})
    assert result.manifest.version == golden.num_tasks
    assert_version_is(cache, result.manifest, golden, golden.session(0))
