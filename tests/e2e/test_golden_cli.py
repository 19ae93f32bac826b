"""Golden parity through `condu fuse` and `condu export`, on both stores."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from fusion.store import open_store
from fusion.store.node_cache import NodeCache
from fusion.versions.history import Versions
from tests.e2e.project import Project
from tests.fusion.test_golden import assert_version_is
from tests.golden import FILES, Golden


@pytest.mark.parametrize(
    ("stem", "separately"),
    [
        *(pytest.param(stem, False, id=f"{stem}-one command") for stem in FILES),
        *(
            pytest.param(stem, True, id=f"{stem}-a process a task", marks=pytest.mark.processes)
            for stem in ("iterative_t2", "joint_t6")  # one of each mode: processes take seconds to start
        ),
    ],
)
def test_fuse_and_export_agree_with_the_reference(
    stem: str, separately: bool, store_url: str, bare: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the fixture of the S3 store sets this process's environment: the command gets the same
    s3 = {key: value for key, value in os.environ.items() if key.startswith("AWS_")}
    monkeypatch.setattr(bare, "env", {**bare.env, **s3})
    fuse = bare.condu if separately else bare.condu_here
    golden = Golden(stem)
    base, experts = golden.write(tmp_path)
    named = [f"--expert={task}={path}" for task, path in zip(golden.tasks, experts, strict=True)]
    each = ["--each"] if golden.mode == "iterative" and not separately else []
    results = []
    for group in [[one] for one in named] if separately else [named]:
        line = ["--store", store_url, "--base", base, *group, "--mode", golden.mode, *each, "--json"]
        done = fuse("fuse", *line)
        assert done.returncode == 0, done.stderr
        results += json.loads(done.stdout)
    if golden.mode == "joint":
        results = results[-1:]
    assert len(results) == (golden.num_tasks if golden.mode == "iterative" else 1)
    store = open_store(store_url)
    cache = NodeCache(store, tmp_path / "cache")
    for number, result in enumerate(results):
        assert_version_is(cache, Versions(store).read(result["version"]), golden, golden.session(number))
    last = golden.session(golden.num_tasks - 1)
    for i in (0, golden.num_tasks - 1):
        out = tmp_path / f"{i}.safetensors"
        done = bare.condu_here("export", "--store", store_url, "--base", base, "--task", golden.tasks[i], out)
        assert done.returncode == 0, done.stderr
        exported = load_file(out)
        for name, mask in last.masks[i].items():
            want = last.rescalers[i] * mask * last.unified[name]
            np.testing.assert_allclose(exported[name], want, rtol=2e-6, atol=1e-12, err_msg=name)
