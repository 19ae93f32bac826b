"""Two services on one cluster: the second store is refused with the name of the first, which goes on answering."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from fusion.errors import ConfigError
from fusion.store import open_store
from fusion.store.address import StoreAddress
from serving.app import start, stop
from serving.options import ServiceOptions
from tests.serving.helpers import free_port, publish_tasks

pytestmark = pytest.mark.usefixtures("ray_session")


def options_for(folder: Path, port: int) -> ServiceOptions:
    store = open_store(str(folder))
    publish_tasks(store)
    return ServiceOptions(address=StoreAddress(store.url), port=port, num_cpus=0.5, poll_s=0.2)


def test_a_second_store_is_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    port = free_port()
    try:
        assert start(options_for(tmp_path / "first", port)) == [f"http://127.0.0.1:{port}"]
        with pytest.raises(ConfigError, match=r"already serves .*first"):
            start(options_for(tmp_path / "second", port))
        assert httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=30).status_code == 200
        assert start(options_for(tmp_path / "first", port)) == [f"http://127.0.0.1:{port}"], "the same store: an update"
    finally:
        stop()
