"""The builder that `serve deploy` and RayService name: a configuration's values in, a service out."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from cluster.deploy.app import build
from fusion.errors import ConfigError, UnknownVersionError
from fusion.store import open_store
from serving.client import Client, ServiceError
from serving.tokens.registry import add_token, remove_token
from serving.tokens.token import new_token
from tests.serving.helpers import free_port, publish_tasks
from tests.tiny import MODEL_CFG, PREPROCESS_CFG


def values(folder: Path, **changes: Any) -> dict[str, Any]:
    (folder / "tiny.json").write_text(json.dumps({"model_cfg": MODEL_CFG, "preprocess_cfg": PREPROCESS_CFG}))
    base = {"architecture": str(folder / "tiny.json"), "weights": str(folder / "base.safetensors")}
    return {"store": f"file://{folder}/store", "base": base, "serve": {"num_cpus": 0.5, "poll_s": 0.2}, **changes}


@pytest.mark.parametrize("typo", [{"stor": "file:///x"}, {"serve": {"num_cpu": 1}}, {"serve": {"poll_s": -1}}])
def test_a_mistake_in_the_values_is_named_before_anything_starts(tmp_path: Path, typo: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="args of the Serve application"):
        build(values(tmp_path, **typo))


def test_an_empty_store_is_an_error_that_says_so(tmp_path: Path) -> None:
    with pytest.raises(UnknownVersionError):
        build(values(tmp_path))


@pytest.fixture
def port(ray_session: None) -> Iterator[int]:
    from ray import serve

    port = free_port()
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    yield port
    serve.shutdown()


def test_what_it_builds_answers(tmp_path: Path, port: int) -> None:
    from ray import serve

    publish_tasks(open_store(f"file://{tmp_path}/store"))
    store = open_store(f"file://{tmp_path}/store")
    with pytest.raises(ConfigError, match="no valid one"):
        build(values(tmp_path))
    token, record = new_token("app", "predict")
    add_token(store, record)
    serve.run(build(values(tmp_path, predict={"rule": "mean"})), name="condu", route_prefix="/")
    url = f"http://127.0.0.1:{port}"
    assert httpx.get(f"{url}/readyz", timeout=30).status_code == 200
    assert httpx.get(f"{url}/v1/tasks", timeout=30).status_code == 401
    with Client(url, token=token) as client:
        assert client.tasks().version >= 1
        remove_token(store, "app")
        deadline = time.monotonic() + 30
        while httpx.get(f"{url}/v1/tasks", headers={"Authorization": f"Bearer {token}"}, timeout=30).status_code == 200:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        with pytest.raises(ServiceError, match="not valid"):
            client.tasks()
