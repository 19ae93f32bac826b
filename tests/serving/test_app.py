"""Mistakes that stop a service before it starts."""

from __future__ import annotations

import dataclasses
import socket
from pathlib import Path
from typing import Any

import pytest

from fusion.errors import BaseMismatchError, ConfigError, UnknownVersionError
from fusion.fuse import ExpertToFuse, fuse_experts
from fusion.store import Store
from fusion.store.address import StoreAddress
from fusion.store.node_cache import NodeCache
from fusion.tensors import write_tensors
from fusion.versions.bases import put_base
from serving.app import build_app, check_port, check_store
from serving.options import ReplicaOptions, ServiceOptions
from tests.serving.helpers import free_port


def test_a_store_without_a_version_says_how_to_make_one(local_store: Store) -> None:
    with pytest.raises(UnknownVersionError, match="condu run"):
        check_store(ServiceOptions(address=StoreAddress(local_store.url)))


def test_a_base_without_an_architecture_can_not_be_served(local_store: Store, tmp_path: Path) -> None:
    import torch

    for name, value in (("base", 0.0), ("expert", 1.0)):
        write_tensors(tmp_path / f"{name}.safetensors", {"w": torch.full((4, 4), value)})
    base = put_base(local_store, tmp_path / "base.safetensors")
    fuse_experts(
        NodeCache(local_store),
        base,
        [ExpertToFuse("a", tmp_path / "expert.safetensors")],
        mode={"name": "signed", "bits": 1},
    )
    with pytest.raises(BaseMismatchError, match=r"base\.architecture"):
        check_store(ServiceOptions(address=StoreAddress(local_store.url)))


def test_a_port_in_use_is_named_and_a_free_one_is_fine() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"127.0.0.1:{port}.*in use"):
            check_port("127.0.0.1", port)
    check_port("127.0.0.1", free_port())
    with pytest.raises(ConfigError, match="no-such-host"):
        check_port("no-such-host.invalid", 8000)


def test_replicas_and_their_bounds_pass_through() -> None:
    options = ServiceOptions(
        address=StoreAddress("x"), replicas=ReplicaOptions(min=2, max=5), num_gpus=0.25, max_batch_size=32
    )
    replica: Any = build_app(options)._bound_deployment
    config = replica._deployment_config
    assert (config.autoscaling_config.min_replicas, config.autoscaling_config.max_replicas) == (2, 5)
    assert config.max_queued_requests >= options.max_queued_requests
    assert config.backpressure_config.status_code == 429
    assert config.max_ongoing_requests >= options.max_batch_size  # else batches never fill
    assert replica.ray_actor_options == {"num_cpus": 1.0, "num_gpus": 0.25}
    one: Any = build_app(dataclasses.replace(options, replicas=ReplicaOptions(min=2, max=2)))._bound_deployment
    assert (one.num_replicas, one._deployment_config.autoscaling_config) == (2, None)
