"""The request log of real Serve replicas: what was asked is in the store once it stopped, for `condu drift`."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import httpx
import pyarrow.parquet as pq
import pytest

from fusion.store.address import StoreAddress
from serving.app import start, stop
from serving.options import LogOptions, ServiceOptions
from tests.e2e.project import Project
from tests.serving.helpers import TASKS, form_of, free_port, pictures, publish_tasks

pytestmark = pytest.mark.usefixtures("ray_session")


def test_what_was_asked_is_in_the_log_once_the_service_has_stopped(tmp_path: Path) -> None:
    project = Project(tmp_path / "project")
    store = project.store
    publish_tasks(store, evidence=True)
    log = LogOptions(sample=1.0, flush_s=3600)
    options = ServiceOptions(address=StoreAddress(store.url), port=free_port(), num_cpus=0.5, log=log)
    start(options)
    asked: dict[str, dict[str, Any]] = {}
    try:
        client = httpx.Client(base_url=f"http://127.0.0.1:{options.port}", timeout=60, trust_env=False)
        for number in range(12):
            names = tuple(TASKS["colours"][(number + i) % 4] for i in range(4))
            data = {"task": "colours"} if number % 2 else {}
            answer = client.post("/v1/predict", files=form_of(pictures(*names, seed=number)), data=data)
            assert answer.status_code == 200, answer.text
            asked[answer.headers["X-Request-Id"]] = answer.json()
        assert list(store.list("log/")) == []  # what waits is in memory
    finally:
        stop()
    rows = [row for info in store.list("log/") for row in pq.read_table(io.BytesIO(store.get(info.key))).to_pylist()]
    assert len(rows) == 48
    for row in rows:
        answer = asked[row["request"]]
        assert (row["version"], row["label_space"]) == (answer["version"], answer["label_space"])
        assert row["label"] in {one["label"] for one in answer["predictions"]}
    done = project.condu_here("drift", "condu.yaml", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert (found["images"], found["tasks"]["colours"]["named"]) == (48, 24)
    assert found["tasks"]["colours"]["p_value"] > 0.01
